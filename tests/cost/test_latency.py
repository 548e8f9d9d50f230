"""Milliseconds by a clock that only the network moves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.cost import latency
from lightning_slimga.cost.latency import LatencyBench, measure_latency
from lightning_slimga.running.calls import Call
from lightning_slimga.surgery.channel_surgery import ChannelSurgery

CALL = Call("", (torch.zeros(1, 2),))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


class Slow(nn.Module):
    """Takes known times, one after the other, and checks how it is run."""

    def __init__(self, clock: Clock, seconds: list[float]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout()
        self.takes = iter(seconds)
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.clock.now += next(self.takes)
        return self.drop(self.norm(x))


def test_the_median_of_all_runs_but_the_first(clock: Clock) -> None:
    seconds = [9.0, 0.02, 0.01, 0.07, 0.03, 0.04, 5.0]
    found = measure_latency(Slow(clock, seconds), [CALL], min_run_time=9.16)
    assert found == pytest.approx(1e3 * statistics.median(seconds[1:6]))


def test_a_few_runs_are_made_however_long_they_take(clock: Clock) -> None:
    found = measure_latency(Slow(clock, [9.0, 7.0, 8.0]), [CALL], min_run_time=0.0)
    assert found == pytest.approx(7500.0)


def test_several_calls_are_added_up(clock: Clock) -> None:
    found = measure_latency(Slow(clock, [1.0, 2.0] * 3), [CALL, CALL], min_run_time=0.0)
    assert found == pytest.approx(3000.0)


def test_the_network_is_left_as_it_was(clock: Clock) -> None:
    model = Slow(clock, [1.0] * 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    measure_latency(model, [CALL], min_run_time=0.0)
    assert model.training
    assert model.drop.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[LatencyBench]:
    """Of a network that takes 1 ms and 1/4 ms for each hidden channel, on a machine that drifts."""
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    speed = iter(np.geomspace(1.0, 3.0, 200))

    def stopwatch(network: nn.Module, calls: list[Call]) -> float:
        return float(next(speed)) * (1.0 + network[0].out_features / 4)

    monkeypatch.setattr(latency, "_short", stopwatch)
    return LatencyBench(ChannelSurgery(model, torch.zeros(1, 2)), [CALL])


def test_a_machine_that_drifts_does_not_bend_the_formula(bench: LatencyBench) -> None:
    model = bench.calibrated()
    kept = np.arange(1, 9)[:, None]
    expected = (1 + kept[:, 0] / 4) / 3 * model.full_ms
    assert model(kept) == pytest.approx(expected, rel=0.02)


def test_a_measured_network_is_on_the_clock_of_the_full_one(bench: LatencyBench) -> None:
    mask = np.arange(8) < 4
    assert bench.measure(mask, full_ms=30.0) == pytest.approx(20.0, rel=0.01)
