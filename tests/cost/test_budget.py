from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_slimga.cost.budget import KNOWN_BUDGETS, budgets_for, check_budget
from lightning_slimga.surgery.channel_surgery import ChannelSurgery

FULL = (2 * 9 * 8 * 16 + 8 * 4, 2 * 9 * 8 + 8 + 2 * 8 + 8 * 4 + 4)
"""MACs for one image of 6 x 6, and parameters, of the network below, counted by hand."""


@pytest.fixture(scope="module")
def surgery() -> ChannelSurgery:
    body = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    network = nn.Sequential(*body, nn.Flatten(), nn.Linear(8, 4))
    return ChannelSurgery(network, torch.randn(3, 2, 6, 6))


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 1}, {"macs": 1.0, "params": 10_000}])
def test_a_proper_budget_comes_back(budget: dict[str, Any]) -> None:
    checked = check_budget(budget)
    assert checked == budget
    assert checked is not budget


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        (0.5, TypeError, 'a mapping such as {"macs": 0.5}, but got float'),
        (["macs"], TypeError, "a mapping .* but got list"),
        ({}, ValueError, "at least one limit"),
        (
            {"flops": 0.5},
            ValueError,
            f"limits of some of {', '.join(KNOWN_BUDGETS)}, but got 'flops'",
        ),
        ({"macs": "half"}, ValueError, r"`budget\['macs'\]` to be a fraction .* got 'half'"),
        ({"macs": True}, ValueError, r"`budget\['macs'\]` to be a fraction .* got True"),
        ({"latency_ms": 0}, ValueError, r"`budget\['latency_ms'\]` to be positive milli.* got 0"),
        ({"latency_ms": "1"}, ValueError, "positive milliseconds, but got '1'"),
        ({"macs": 0}, ValueError, r"`budget\['macs'\]` to be a fraction in \(0, 1\] .* got 0"),
        ({"macs": -0.5}, ValueError, "but got -0.5"),
        ({"params": 1.5}, ValueError, r"a whole number above 1 \(absolute\), but got 1.5"),
        ({"params": float("nan")}, ValueError, "but got nan"),
        ({"params": float("inf")}, ValueError, "but got inf"),
    ],
)
def test_an_improper_budget_is_refused(budget: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_budget(budget)


def test_fractions_and_numbers_become_limits(surgery: ChannelSurgery) -> None:
    full = np.array([8])
    macs, params = budgets_for({"macs": 0.5, "params": 100}, surgery.cost, full, samples=3)
    assert (macs.name, macs.limit) == ("macs", 0.5 * FULL[0])
    assert (params.name, params.limit) == ("params", 100.0)
    assert macs.cost(full[None]).tolist() == [FULL[0]]
    assert params.cost(full[None]).tolist() == [FULL[1]]


def test_macs_are_counted_per_sample(surgery: ChannelSurgery) -> None:
    (limit,) = budgets_for({"macs": 1000}, surgery.cost, np.array([8]), samples=3)
    kept = np.array([[8], [4], [1]])
    assert limit.limit == 1000.0
    assert limit.cost(kept).tolist() == [FULL[0], FULL[0] / 2, FULL[0] / 8]


def test_one_is_the_whole_network(surgery: ChannelSurgery) -> None:
    limits = budgets_for({"macs": 1.0, "params": 1}, surgery.cost, np.array([8]), samples=3)
    assert [limit.limit for limit in limits] == list(FULL)
