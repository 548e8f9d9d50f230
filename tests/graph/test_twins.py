from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_slimga import ChannelSurgery, PruningPlan


def net() -> nn.Sequential:
    """Convolutions in both directions, attention, and a norm."""
    layer = nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.ConvTranspose1d(3, 6, 1), nn.BatchNorm1d(6), nn.Conv1d(6, 8, 1), nn.Flatten(2), layer
    )


class Pair(nn.Module):
    """Runs one of two networks, or both."""

    def __init__(self, runs: str) -> None:
        super().__init__()
        self.net, self.runs = net(), runs
        self.average: Any = AveragedModel(self.net) if runs == "average" else copy.deepcopy(net())

    def forward(self, x: Tensor) -> Any:
        first = self.net(x) if self.runs in ("net", "both", "average") else None
        return first, self.average(x) if self.runs in ("copy", "both") else None


@pytest.mark.parametrize("runs", ["net", "copy", "both", "average"])
def test_twins_keep_the_same_channels_whichever_runs(runs: str) -> None:
    torch.manual_seed(0)
    model, x = Pair(runs).eval(), torch.randn(2, 3, 8)
    surgery = ChannelSurgery(model, x, twins=[("net", "average")])
    assert surgery.num_channels >= 6
    keep = np.random.default_rng(1).random(surgery.num_channels) < 0.6
    for layer in surgery.layers:
        keep[layer.slice.start] = True
    full = copy.deepcopy(model)
    copied = model.average.module if runs == "average" else model.average
    plan = surgery.apply(keep)
    cut = {".".join(c.places[0]): c.kept for c in plan.tensors.values()}
    prefix = "average.module." if runs == "average" else "average."
    for name, kept in cut.items():
        if name.startswith("net."):
            other = cut[prefix + name.removeprefix("net.")]
            assert {d: i.tolist() for d, i in kept.items()} == {
                d: i.tolist() for d, i in other.items()
            }
    copied.load_state_dict(model.net.state_dict())
    torch.testing.assert_close(copied(x), model.net(x))  # sizes that it keeps are right, too
    again = full.net
    plan.within("net").apply(again)
    torch.testing.assert_close(again(x), model.net(x))


def test_without_twins_each_keeps_its_own() -> None:
    surgery = ChannelSurgery(Pair("both"), torch.randn(2, 3, 8))
    tied = ChannelSurgery(Pair("both"), torch.randn(2, 3, 8), twins=[("net", "average")])
    assert surgery.num_channels == 2 * tied.num_channels


def test_the_part_of_a_plan_goes_into_a_file() -> None:
    model = Pair("net").eval()
    surgery = ChannelSurgery(model, torch.randn(2, 3, 8))
    keep = np.ones(surgery.num_channels, dtype=bool)
    keep[0] = False
    part = surgery.plan(keep).within("net")
    assert all(not name.startswith("net") for name in part.tensors)
    PruningPlan.from_json(part.to_json()).apply(model.net)
    assert model.net[0].out_channels == 5
    assert not surgery.plan(keep).within("average").tensors


@pytest.mark.parametrize(
    "twins",
    [
        [("net", "net.0")],
        [("net", "head")],
        [("net", "net")],
        ["net"],
        [("net", 3)],
        {"net": "x"},
        5,
    ],
)
def test_what_are_no_twins_is_refused(twins: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected argument `twins` to be .*, but got"):
        ChannelSurgery(Pair("net"), torch.randn(2, 3, 8), twins=twins)


@pytest.mark.parametrize("trained", [["nobody"], 5, [3]])
def test_what_are_no_parameters_is_refused(trained: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected argument `trained` to be .*, but got"):
        ChannelSurgery(nn.Linear(3, 4), torch.randn(2, 3), trained=trained)


class Parts(nn.Module):
    """A frozen stem, a position embedding, a block with a norm, and a head of one output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))
        self.place = nn.Parameter(torch.randn(1, 4, 5))
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(7, 1)
        self.mid = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.stem(x) + self.place))


@pytest.mark.parametrize(
    ("trained", "layers", "untrained"),
    [
        (["mid.weight", "head.weight"], ["mid"], ["stem"]),
        (["head.weight"], [], ["stem", "mid"]),
        (["place", "mid.bias"], ["stem.2", "mid"], ["stem"]),
        (["stem.0.bias"], ["stem.0"], ["stem.2", "mid"]),
    ],
)
def test_channels_that_no_trained_parameter_makes_stay(
    trained: list[str], layers: list[str], untrained: list[str]
) -> None:
    surgery = ChannelSurgery(Parts(), torch.randn(2, 4, 3), trained=trained)
    assert [layer.name for layer in surgery.layers] == layers
    assert surgery.untrained == untrained
    whole = ChannelSurgery(Parts(), torch.randn(2, 4, 3))
    assert whole.num_channels == 6 + 5 + 7
    assert whole.untrained == []


def test_what_always_stays_is_counted_apart() -> None:
    surgery = ChannelSurgery(Parts(), torch.randn(2, 4, 3), trained=["mid.weight", "head.weight"])
    stem = 3 * 6 + 6 + 6 * 5 + 5
    assert surgery.untrained_costs["macs"] == 2 * 4 * (3 * 6 + 6 * 5)
    assert surgery.untrained_costs["params"] == stem
