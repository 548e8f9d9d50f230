"""The options of a surgery: taken, or refused by name before the network is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery


class NotToBeRun(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it was run")


class Runs(NotToBeRun):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(("min_channels", v, "a whole number of at least 1") for v in (0, 1.5, True, "1", None)),
        *(("round_to", v, "a whole number of at least 1") for v in (0, 8.0, True, "8", None)),
        *(("only_scaled", v, "True or False") for v in ("x", 1, None)),
        *(("allow_approximate", v, "True or False") for v in ("no", 0, None)),
        *(("ignore", v, "a list of patterns") for v in (5, None, [3], {"head": 1}, b"head")),
        ("ignore", ["body", "tail"], "hold patterns .* 'tail' matches none"),
        ("ignore", "tail", "hold patterns of module names, but 'tail' matches none of body, h"),
    ],
)
def test_an_option_that_makes_no_sense(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` to .*{message}"):
        ChannelSurgery(NotToBeRun(), torch.zeros(2, 4), **{name: value})


@pytest.mark.parametrize("ignore", ["body", "bo*", ["body"], ("head", "body"), {"body"}])
def test_one_pattern_or_several(ignore: Any) -> None:
    assert ChannelSurgery(Runs(), torch.zeros(2, 4), ignore=ignore).num_channels == 0
    assert ChannelSurgery(Runs(), torch.zeros(2, 4), ignore="head").num_channels == 8


def test_numbers_and_truth_values_of_numpy() -> None:
    surgery = ChannelSurgery(
        Runs(),
        torch.zeros(2, 4),
        min_channels=np.int64(2),
        round_to=np.int32(4),
        only_scaled=np.bool_(False),
    )
    assert surgery.num_channels == 8
    assert (type(surgery.widths.min_channels), type(surgery.widths.round_to)) == (int, int)
