"""A budget in milliseconds: held as measured, the same on resuming, refused when out of reach."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_slimga.cost import latency
from lightning_slimga.running.calls import Call
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_pruned,
    fitted,
    prune,
    trainer,
    widths,
)


class Clock:
    """Tells milliseconds from the widths that the network has at the moment."""

    def __init__(self) -> None:
        self.readings = 0
        self.slow = 1.0  # what shrunk networks take beyond their share

    def __call__(self, model: nn.Module, calls: Sequence[Call]) -> float:
        assert all(len(call.args[0]) == 1 for call in calls)
        self.readings += 1
        first, second = widths(model)
        milliseconds = 1.0 + 0.25 * first + first * second / 32
        busy = (self.readings - 1) // 8 % 4 == 3  # now and then the machine has other work
        drift = 2.0 if busy else 1.0
        return drift * milliseconds * (1.0 if (first, second) == WIDTHS else self.slow)


FULL = 1.0 + 0.25 * WIDTHS[0] + WIDTHS[0] * WIDTHS[1] / 32


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "_short", clock)
    return clock


def true_milliseconds(module: Any) -> float:
    first, second = widths(module)
    return 1.0 + 0.25 * first + first * second / 32


def test_the_winner_holds_the_limit(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    limit = 0.6 * FULL
    with caplog.at_level(logging.INFO):
        fit, module = fitted(Net(), prune(budget={"latency_ms": limit}))
    assert_pruned(fit, module)
    assert true_milliseconds(module) <= limit
    first, second = widths(module)
    larger = min(1.0 + 0.25 * (first + 1) + (first + 1) * second / 32, FULL)
    assert larger > 0.95 * limit or first == WIDTHS[0]
    assert "predicted with a median error of 0.0%" in caplog.text
    assert "tightened" not in caplog.text


def test_where_the_prediction_was_too_low_the_limit_is_tightened(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measure = latency.LatencyBench.measure

    def slower(bench: Any, mask: Any, full_ms: float) -> float:
        clock.slow = 1.5
        return measure(bench, mask, full_ms)

    monkeypatch.setattr(latency.LatencyBench, "measure", slower)
    limit = 0.6 * FULL
    with caplog.at_level(logging.INFO):
        _, module = fitted(Net(), prune(budget={"latency_ms": limit}))
    assert 0.5 * limit < 1.5 * true_milliseconds(module) <= limit
    assert "its limit is tightened" in caplog.text


def test_several_limits_hold_together(clock: Clock) -> None:
    _, module = fitted(Net(), prune(budget={"latency_ms": 0.9 * FULL, "macs": 0.4}))
    first, second = widths(module)
    macs = 16 * first * 2 * 9 + 4 * second * first * 9 + second * 4
    full = 16 * 8 * 2 * 9 + 4 * 12 * 8 * 9 + 12 * 4
    assert macs <= 0.4 * full
    assert true_milliseconds(module) <= 0.9 * FULL


def test_a_network_is_picked_by_its_milliseconds(clock: Clock) -> None:
    limit = 0.6 * FULL
    callback = prune(budget={"latency_ms": 0.9 * FULL}, pick={"latency_ms": limit}, generations=4)
    _, module = fitted(Net(), callback)
    assert true_milliseconds(module) <= 1.001 * limit
    assert callback.front is not None
    assert callback.front.budget == "latency_ms"
    costs = [point.cost for point in callback.front.points]
    assert costs == sorted(costs)
    assert costs[-1] <= 1.001 * 0.9 * FULL
    reachable = max(cost for cost in costs if cost <= limit)
    assert true_milliseconds(module) == pytest.approx(reachable, rel=1e-3)


def test_a_limit_out_of_reach_says_what_is_reachable(clock: Clock) -> None:
    module = Net()
    smallest = 1.0 + 0.25 + 1 / 32
    with pytest.raises(
        MisconfigurationException,
        match=rf"`latency_ms` to be reachable, but its limit is 0.5 .* has {smallest:.2f}",
    ):
        fitted(module, prune(budget={"latency_ms": 0.5}))
    assert widths(module) == WIDTHS


def test_a_limit_that_is_met_already_prunes_nothing(clock: Clock) -> None:
    module = Net()
    with pytest.warns(UserWarning, match="meets the budget"):
        fitted(module, prune(budget={"latency_ms": 1.01 * FULL}))
    assert widths(module) == WIDTHS


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_search_keeps_its_calibration(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though the machine has another speed by then."""
    arguments: dict[str, Any] = {"budget": {"latency_ms": 0.6 * FULL}, "generations": 3}
    _, whole = fitted(Net(), prune(**arguments))

    steps = itertools.count(1)  # a module's own attributes are restored after each evaluation

    class Interrupted(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if next(steps) == 9:
                raise KeyError("in the middle of a candidate")

    keep = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.raises(KeyError):
        fitted(Interrupted(), prune(**arguments), keep)
    clock.slow = 0.3  # a calibration now would find other networks feasible
    calibrations = clock.readings
    again = Net()
    fit = trainer(prune(**arguments), ModelCheckpoint(tmp_path, save_last=True))
    fit.fit(again, ckpt_path=tmp_path / "last.ckpt")
    assert_equal(again, whole)
    assert clock.readings - calibrations < 20  # the finalist, and no calibration


def test_a_real_clock() -> None:
    with pytest.raises(MisconfigurationException, match="to be reachable, but its limit is 1e-05"):
        fitted(Net(), prune(budget={"latency_ms": 1e-5}))
