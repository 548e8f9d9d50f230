"""Whichever network runs second takes over what is the same, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery, SurgeryError
from lightning_slimga.surgery.proof.sharing import Sharing
from tests.networks.checks import everything_replayed, random_mask, randomise, relative_error

MM = torch.ops.aten.mm.default
PLACE = ("layer", 1, "aten::mm")


@pytest.fixture(autouse=True)
def _everything_is_heavy() -> Iterator[None]:
    with everything_replayed():
        yield


def second(x: Tensor, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> bool:
    """Whether a second network takes over what the first has computed, after a change."""
    weight = torch.rand(4, 5, dtype=x.dtype)
    sharing = Sharing([x, weight])
    first = sharing.run(PLACE, MM, (x, weight), {})
    wanted = first.clone()
    first.fill_(7)  # whatever the first network does with it afterwards
    sharing.second = True
    args = change(x, weight)
    computed: list[bool] = []

    def watched(*given: Tensor) -> Tensor:
        computed.append(True)
        return MM(*given)

    watched.overloadpacket, watched._schema = MM.overloadpacket, MM._schema
    found = sharing.run(PLACE, watched, args, {})
    assert relative_error(args[0] @ args[1], found) < 1e-6
    assert computed or torch.equal(found, wanted)
    return not computed


def test_the_same_numbers_are_taken_over() -> None:
    assert second(torch.rand(3, 4), lambda x, w: (x, w))
    assert second(torch.rand(3, 4), lambda x, w: (x.clone(), w))
    assert second(torch.rand(3, 4), lambda x, w: (x.clone(), w.clone()))
    with torch.inference_mode():
        x = torch.rand(3, 4)
    assert second(x, lambda x, w: (x.clone(), w))


def changed_in_place(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x.add_(1)
    return x, weight


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w: (x * (1 + 2e-7), w),
        lambda x, w: (x, w * (1 + 2e-7)),
        lambda x, w: (x.double(), w.double()),
        lambda x, w: (x[:2], w),
        lambda x, w: (x.flip(0), w),
        lambda x, w: (torch.full_like(x, torch.nan), w),
        changed_in_place,
    ],
)
def test_anything_else_is_computed(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    x = torch.rand(3, 4)
    if change(x.clone(), torch.rand(4, 5))[0].isnan().any():
        with pytest.raises(AssertionError):
            second(x, change)  # computed: the comparison in `second` meets NaN
    else:
        assert not second(x, change)


def test_memory_that_anyone_may_write_into_is_not_trusted() -> None:
    """A write through ``.data`` leaves no mark; the next pass finds other numbers."""
    workspace, weight = torch.rand(3, 4), torch.rand(4, 5)
    sharing = Sharing([weight])
    sharing.run(PLACE, MM, (workspace, weight), {})
    workspace.data.mul_(2)
    sharing.second = True
    assert torch.equal(sharing.run(PLACE, MM, (workspace, weight), {}), workspace @ weight)


class Leaky(nn.Module):
    """Divides by how many channels it sees: nothing in the trace of the full network tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.full = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        y = y * (1.0 if self.full else 16 / y.shape[1])
        return self.head(self.second(y).relu())


def test_networks_that_part_before_a_contraction_are_told_apart() -> None:
    """What the second one would take over is no longer what it computes."""
    model, x = Leaky(), torch.rand(2, 6)
    randomise(model)
    surgery = ChannelSurgery(model, x)
    assert len(surgery.layers) == 2
    model.full = False
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SurgeryError, match="does not do on the example inputs"):
        surgery.apply(random_mask(surgery))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Scaled(nn.Module):
    """A size is written into code; what it changes is small beside one channel of the next layer.

    Args:
        large: the numbers in that channel.
        workspace: pass the small ones on in memory that both networks use.
    """

    def __init__(self, large: float, *, workspace: bool = False) -> None:
        super().__init__()
        self.first, self.next, self.last = nn.Linear(6, 32), nn.Linear(33, 32), nn.Linear(32, 4)
        self.read = nn.Linear(32, 1)
        self.large, self.workspace = large, (torch.zeros(16, 33),) if workspace else None
        with torch.no_grad():
            self.next.weight[:, 32] /= large

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y * (8 / y.shape[1])
        if self.workspace is not None:
            self.workspace[0].data.copy_(self.read(y).expand(-1, 33))
            return self.last(self.next(self.workspace[0]).relu())
        y = torch.cat([y, self.large * (1 + x[:, :1].abs())], 1)
        return self.last(self.next(y).relu())


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        (Scaled(1e7), torch.float32),
        (Scaled(60.0), torch.bfloat16),
        (Scaled(600.0), torch.bfloat16),
        (Scaled(600.0), torch.float16),
        (Scaled(1.0, workspace=True), torch.float32),
    ],
)
def test_the_proof_sees_what_is_small_beside_other_channels(
    model: Scaled, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    surgery = ChannelSurgery(model.to(dtype), torch.randn(16, 6, dtype=dtype))
    assert [layer.name for layer in surgery.layers] == ["next"]


class Frees(nn.Module):
    """Gives memory back as soon as it is no longer needed (a reversible network)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(y.tanh())
        y.untyped_storage().resize_(0)
        return z


def test_a_network_that_frees_its_memory_may() -> None:
    model, x = Frees(), torch.rand(128, 64)
    surgery = ChannelSurgery(model, x)
    assert [layer.name for layer in surgery.layers] == ["first"]
    surgery.apply(random_mask(surgery))
    model(x)
