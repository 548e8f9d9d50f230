"""Whichever network runs second takes over what is the same, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.sharing import Sharing
from lightning_slimga.surgery import ChannelSurgery, SurgeryError
from tests.networks.checks import everything_replayed, random_mask, randomise, relative_error

MM = torch.ops.aten.mm.default
PLACE = ("layer", 1, "aten::mm")


@pytest.fixture(autouse=True)
def _everything_is_heavy() -> Iterator[None]:
    with everything_replayed():
        yield


def second(x: Tensor, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> bool:
    """Whether a second network takes over what the first has computed, after a change."""
    sharing, weight = Sharing(), torch.rand(4, 5, dtype=x.dtype)
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
    assert second(torch.rand(3, 4), lambda x, w: (x * (1 + 1e-7), w.clone()))
    with torch.inference_mode():
        x = torch.rand(3, 4)
    assert second(x, lambda x, w: (x.clone(), w))


def changed_in_place(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x.add_(1)
    return x, weight


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w: (x + 1e-5, w),
        lambda x, w: (x, w * (1 + 1e-5)),
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
