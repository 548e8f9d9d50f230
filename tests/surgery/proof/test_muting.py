"""Muting must return what the masked network returns; where it cannot, it must say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga.graph import tracer
from lightning_slimga.graph.op import Op
from lightning_slimga.surgery.analysis import running
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.proof import muting as module
from lightning_slimga.surgery.proof.muting import Muting
from lightning_slimga.surgery.proof.regrouping import regrouped
from lightning_slimga.surgery.proof.sharing import Sharing
from lightning_slimga.surgery.proof.survivors import Survivors
from tests.networks.checks import random_mask, randomise, relative_error


class Functional(nn.Module):
    """Weights that are viewed, scaled, chunked, and read by contractions and other ops."""

    def __init__(self) -> None:
        super().__init__()
        self.joint = nn.Parameter(torch.randn(32, 6))
        self.scale = nn.Parameter(torch.rand(16) + 0.5)
        self.table = nn.Embedding(5, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.joint.chunk(2)
        gate = torch.sigmoid(F.linear(x, second * self.scale[:, None]))
        y = F.linear(x, first) + self.table(torch.tensor([1]))
        return self.head(torch.sigmoid(y) * gate + 1)


def conv(*sizes: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(*sizes, 3, padding=1, **options)


NETWORKS = {
    "convolutions": (
        nn.Sequential(
            conv(3, 16), nn.BatchNorm2d(16), nn.Sigmoid(), conv(16, 16, groups=16), nn.ELU(),
            conv(16, 24, groups=4), nn.Softplus(), nn.ConvTranspose2d(24, 8, 2), conv(8, 2),
        ),
        torch.rand(1, 3, 6, 6),
    ),
    "the same positions of every group": (
        nn.Sequential(
            conv(3, 24), nn.Sigmoid(), conv(24, 36, groups=2), nn.ELU(), conv(36, 12, groups=3),
            nn.ConvTranspose2d(12, 16, 2, groups=2), nn.Tanh(), conv(16, 2),
        ),
        torch.rand(1, 3, 6, 6),
    ),
    "linear": (
        nn.Sequential(
            nn.Linear(6, 40), nn.Sigmoid(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 2),
        ),
        torch.rand(2, 6),
    ),
    "attention": (
        nn.TransformerEncoderLayer(16, 4, 48, batch_first=True, activation="gelu"),
        torch.rand(1, 3, 16),
    ),
    "functional": (Functional(), torch.rand(2, 6)),
}  # fmt: skip


def both(
    surgery: ChannelSurgery, x: Tensor, keep: Tensor, *, small: bool = True
) -> tuple[Muting, Tensor, Tensor]:
    model, trace = surgery.model, surgery._analysis.trace
    plan = surgery.plan(keep)
    pieces = {n: (t, plan.tensors[n]) for n, t in plan.pieces(model).items()} if small else {}
    records = surgery._analysis.records["eval"]
    survivors = Survivors(surgery._graph, keep.numpy())
    muting = Muting(records, surgery._graph, trace, keep.numpy(), survivors, pieces, Sharing())
    with running(model), muting:
        found = model(x)
    with running(model), surgery.masked(keep):
        wanted = model(x)
    return muting, found, wanted


@pytest.mark.parametrize("name", NETWORKS)
def test_it_returns_what_the_masked_network_returns(name: str) -> None:
    model, x = NETWORKS[name]
    model.double(), randomise(model)
    surgery = ChannelSurgery(model, x.double())
    assert surgery.layers
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for seed in range(6):
        keep = random_mask(surgery, seed)
        muting, found, wanted = both(surgery, x.double(), keep, small=seed % 2 == 0)
        assert muting.faithful
        assert relative_error(wanted, found) < 1e-12
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_large_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64)), torch.rand(2, 64)
    surgery = ChannelSurgery(model, x)
    sizes: list[int] = []
    zeroed = module.zeroed

    def watched(data: Tensor, *rest: object, **options: object) -> Tensor:
        sizes.append(data.numel())
        return zeroed(data, *rest, **options)

    monkeypatch.setattr(module, "zeroed", watched)
    both(surgery, x, random_mask(surgery), small=False)
    assert sizes
    assert max(sizes) == 2 * 512
    sizes.clear()
    both(surgery, x, random_mask(surgery))
    assert not sizes


class Writes(nn.Module):
    """Normalises its weight in place before it reads it (and so do its users at every step)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.first.weight.clamp_(-1, 1)
        return self.second(self.first(x).relu())


def test_a_pass_that_writes_into_a_weight_is_not_trusted() -> None:
    model, x = Writes(), torch.rand(3, 4)
    surgery = ChannelSurgery(model, x)
    muting, _, _ = both(surgery, x, random_mask(surgery))
    assert not muting.faithful
    surgery.apply(random_mask(surgery))


def test_a_pass_that_goes_another_way_is_not_trusted() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(3, 4)
    surgery = ChannelSurgery(model, x)
    model[1] = nn.Tanh()
    muting, _, _ = both(surgery, x, random_mask(surgery))
    assert not muting.faithful


class Mixes(nn.Module):
    """Mixes its tokens by a weight that loses nothing, and sums over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
        self.tokens = nn.Linear(200, 200)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(torch.sigmoid(self.first(x)).t()).t()
        return self.second(x) + x.sum(-1, keepdim=True)


def test_a_gap_in_the_rules_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that go are muted only where their own weights are; what they leak shows."""
    monkeypatch.setattr(Op, "freeze_if_read", lambda *_: None)
    surgery = ChannelSurgery(Mixes(), torch.rand(200, 6))
    assert not surgery.layers
    assert any("seen by the proof" in why for *_, why in surgery.frozen)


@pytest.mark.parametrize("op", ["aten::t", "aten::addmm", "aten::pointwise"])
def test_labels_that_a_rule_has_mixed_up_are_seen(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that muting takes from the shrunk network may hide where that one went wrong."""
    right, asked = tracer.find_rule, []

    def wrong(name: str) -> Any:
        rule = right(name)
        if rule is None or name != op:
            return rule
        asked.append(name)
        return lambda *args: [d if d is None else np.roll(d, 7) for d in rule(*args)]

    monkeypatch.setattr(tracer, "find_rule", wrong)
    model = nn.Sequential(nn.Linear(6, 40), nn.Sigmoid(), nn.Linear(40, 30), nn.Tanh())
    model.append(nn.Linear(30, 2)).double()
    randomise(model)
    x = torch.rand(2, 6, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    with torch.no_grad(), surgery.masked(keep):
        wanted = model(x)
    with torch.no_grad(), surgery.shrunk(keep):
        found = model(x)
    assert asked
    assert relative_error(wanted, found) < 1e-12


CONVOLUTION = torch.ops.aten.convolution.default


@pytest.mark.parametrize(
    ("groups", "gone_in", "gone_out", "left"),
    [
        (4, [2, 3], [3, 4, 5], 3),  # group 1 of 4: 2 channels each in, 3 out
        (4, [0, 1, 6, 7], [0, 1, 2, 9, 10, 11], 2),
        (4, [2], [3, 4, 5], None),  # a part of a group
        (4, [2, 3], [0, 1, 2], None),  # of one group what it reads, of another what it makes
        (1, [2, 3], [3, 4, 5], None),  # without groups, nothing says that they belong together
    ],
)
def test_groups_that_go_as_a_whole_are_left_out(
    groups: int, gone_in: list[int], gone_out: list[int], left: int | None
) -> None:
    x, weight = torch.rand(1, 8, 5, 5), torch.rand(12, 8 // groups, 3, 3)
    inputs, outputs = np.ones(8, dtype=bool), np.ones(12, dtype=bool)
    inputs[gone_in], outputs[gone_out] = False, False
    args = (x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups)
    found = regrouped(CONVOLUTION, args, [{1: inputs}, {0: outputs}, {1: outputs}])
    if left is None:
        assert found is None
    else:
        assert found is not None
        assert list(found[:-1]) == list(args[:-1])
        assert found[-1] == left
        small = CONVOLUTION(x[:, inputs], weight[outputs], *found[2:])
        assert torch.allclose(small, CONVOLUTION(*args)[:, outputs], atol=1e-6)


@pytest.mark.parametrize(
    ("gone_in", "gone_window", "gone_out", "found"),
    [
        ([0, 4], [0], [1, 2, 7, 8], True),
        ([0, 4], [0], [], True),
        ([], [], [5, 11], True),
        ([0, 5], [0], [1, 7], False),  # the groups lose others
        ([0, 4], [1], [1, 7], False),  # the weight reads others
        ([0, 4], [], [1, 7], False),  # the weight reads what goes
        ([0, 4], [0], [1, 8], False),  # the groups make others
        ([0, 1, 2, 3], [], [0, 1, 2, 3, 4, 5], False),  # a whole group goes, one is left
    ],
)
def test_groups_that_lose_the_same_positions_stay(
    gone_in: list[int], gone_window: list[int], gone_out: list[int], found: bool
) -> None:
    x, weight = torch.rand(1, 8, 5, 5), torch.rand(12, 4, 3, 3)
    live = [np.ones(size, dtype=bool) for size in (8, 4, 12)]
    for mask, gone in zip(live, (gone_in, gone_window, gone_out), strict=True):
        mask[gone] = False
    inputs, window, outputs = live
    lives = [{1: inputs}, {0: outputs, 1: window}, {1: outputs}]
    lives = [{d: mask for d, mask in dims.items() if not mask.all()} for dims in lives]
    args = (x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 2)
    taking = regrouped(CONVOLUTION, args, lives)
    assert (taking is args) == found
    if found:
        small = CONVOLUTION(x[:, inputs], weight[outputs][:, window], *args[2:])
        zeroed = x * torch.from_numpy(inputs)[:, None, None]
        assert torch.allclose(small, CONVOLUTION(zeroed, *args[1:])[:, outputs], atol=1e-6)


def test_what_the_groups_keep_is_contracted_once(taken_over: list[bool]) -> None:
    """The shrunk network takes over what the masked one has contracted, groups or not."""
    model = nn.Sequential(conv(3, 64), conv(64, 96, groups=2), conv(96, 4))
    surgery = ChannelSurgery(model, torch.rand(1, 3, 64, 64))
    taken_over.clear()
    surgery.apply(random_mask(surgery))
    assert taken_over == [True] * 2  # the first one reads little
