"""Racing stops who is clearly behind, and nobody else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_slimga.search.racing import MIN_BATCHES, Race, t_quantile


def run(race: Race, batches: Sequence[float]) -> tuple[float, int]:
    """Let a candidate with these metrics per batch run; what is told, and the batches it needed."""
    runner = race.enter()
    for done in range(1, len(batches)):
        if runner.stops(done, lambda done=done: float(np.mean(batches[:done]))):  # type: ignore[misc]
            return runner.finish(float(np.mean(batches[:done]))), done
    return runner.finish(float(np.mean(batches))), len(batches)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 16, 31])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.95, 0.9967, 0.9999])
def test_quantiles_are_those_of_scipy(probability: float, freedom: int) -> None:
    expected = stats.t.ppf(probability, freedom)
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_rule_is_the_stated_one() -> None:
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(200):
        incumbent, candidate = rng.normal(0.8, 0.02, 12), rng.normal(0.79, 0.02, 12)
        race = Race("max", 1, 12)
        run(race, incumbent)
        _, needed = run(race, candidate)
        for n in range(3, 12):
            d = np.concatenate([[0.0], (candidate - incumbent)[:n]])
            bound = d.mean() + stats.t.ppf(0.98, n) * stats.sem(d) * math.sqrt(1 - n / 12)
            if bound < 0:
                break
        else:
            n = 12
        assert needed == n
        stopped += n < 12
    assert 50 < stopped < 200


@pytest.mark.parametrize("batches", [10, 50])
def test_who_is_as_good_is_rarely_stopped(batches: int) -> None:
    """A candidate whose metric on all batches equals the incumbent's, over all looks."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(1000):
        race = Race("max", 1, batches)
        incumbent, candidate = rng.normal(0.8, 0.03, (2, batches))
        candidate += incumbent.mean() - candidate.mean() + 1e-9
        run(race, incumbent)
        wrong += run(race, candidate)[1] < batches
    assert wrong <= 180


def test_who_is_far_behind_stops_early_and_is_told_the_difference() -> None:
    rng = np.random.default_rng(2)
    race = Race("max", 1, 20)
    incumbent = rng.normal(0.8, 0.02, 20)
    told, needed = run(race, incumbent - 0.3)
    assert needed == 20  # nobody to be compared with
    metric, _ = run(race, incumbent)
    told, needed = run(race, incumbent - 0.2)
    assert needed <= 6
    assert told == pytest.approx(metric - 0.2)
    assert race.shares == [1.0, 1.0, needed / 20]
    assert race.saved == pytest.approx((1 - needed / 20) / 3)


def test_only_who_would_not_become_a_parent_stops() -> None:
    race = Race("max", 3, 20)
    noise = np.random.default_rng(3).normal(0, 0.01, 20)
    for metric in (0.9, 0.8, 0.7):
        assert run(race, metric + noise)[1] == 20
    assert run(race, 0.72 + noise)[1] == 20  # behind two, but a parent
    told, needed = run(race, 0.6 + noise)
    assert needed < 20
    assert told < min(0.72 + noise.mean(), 0.7 + noise.mean())


def test_a_stopped_candidate_is_no_measure_for_others() -> None:
    race = Race("max", 2, 20)
    noise = np.random.default_rng(4).normal(0, 0.01, 20)
    run(race, 0.9 + noise)
    run(race, 0.2 + noise)
    before = race.state_dict()["best"]
    for _ in range(3):
        assert run(race, 0.1 + noise)[1] < 20
    assert race.state_dict()["best"] == before
    assert run(race, 0.3 + noise)[1] == 20


def test_the_lowest_wins_where_the_metric_is_a_loss() -> None:
    rng = np.random.default_rng(5)
    highest, lowest = Race("max", 2, 16), Race("min", 2, 16)
    needed = []
    for _ in range(30):
        batches = rng.normal(rng.uniform(0.2, 0.9), 0.05, 16)
        high, low = run(highest, batches), run(lowest, -batches)
        assert (low[0], low[1]) == (-high[0], high[1])
        needed.append(high[1])
    assert min(needed) < 16


def test_what_is_told_is_worse_even_by_rounding() -> None:
    race = Race("max", 1, 8)
    incumbent = np.full(8, 1.0)
    run(race, incumbent)
    runner = race.enter()
    tiny = np.finfo(float).eps / 4  # 1 - tiny rounds to 1
    for done in range(1, 8):
        if runner.stops(done, lambda: 1.0 - tiny * 2):
            break
    assert runner.finish(1.0 - 2 * tiny) < 1.0


def test_a_few_equal_differences_of_a_coarse_metric_prove_nothing() -> None:
    race = Race("max", 1, 40)
    run(race, [0.75] * 40)
    _, needed = run(race, [0.5] * 3 + [0.75] * 37)
    assert needed > 10
    assert run(race, [0.5] * 40)[1] <= 10


@pytest.mark.parametrize("batches", [1, MIN_BATCHES - 1, math.inf])
def test_does_nothing_with_few_or_countless_batches(batches: float) -> None:
    def fail() -> float:
        raise AssertionError("the running metric was asked for")

    race = Race("max", 1, batches)
    for metric in (0.9, 0.1):
        runner = race.enter()
        assert not any(runner.stops(done, fail) for done in range(1, 6))
        assert runner.finish(metric) == metric
    assert race.off is not None
    assert "batches" in race.off
    assert race.saved == 0


def test_switches_itself_off_where_the_metric_is_known_only_at_the_end() -> None:
    race, asked = Race("max", 1, 8), 0

    def unknown() -> float:
        nonlocal asked
        asked += 1
        return math.nan

    for metric in (math.nan, 0.9, 0.1):  # a candidate whose metric is NaN says nothing about it
        runner = race.enter()
        assert not any(runner.stops(done, unknown) for done in range(1, 8))
        runner.finish(metric)
    assert race.off == "the metric is known only at the end of a validation"
    assert asked == 14


def test_the_metric_may_begin_with_a_later_loader() -> None:
    """As one that a second validation loader logs: NaN while the first one runs."""
    late = Race("max", 1, 14)
    plain = Race("max", 1, 10)
    rng = np.random.default_rng(6)
    for shift in (0.0, -0.3, -0.1):
        batches = rng.normal(0.8 + shift, 0.02, 10)
        told, needed = run(plain, batches)
        runner = late.enter()
        for done in range(1, 14):
            seen = batches[: max(0, done - 4)]
            if runner.stops(done, lambda seen=seen: seen.mean() if len(seen) else math.nan):  # type: ignore[misc]
                break
        else:
            done = 14
        assert done == needed + 4
        assert runner.finish(float(batches.mean())) == pytest.approx(told)


def test_an_undefined_metric_stops_nobody() -> None:
    race = Race("max", 1, 8)
    run(race, [0.9] * 8)
    assert run(race, [math.nan] * 8)[1] == 8
    assert run(race, [0.1, math.nan, *[0.1] * 6])[1] == 8


@pytest.mark.parametrize("batches", [33, 40, 391])
def test_many_batches_are_looked_at_in_blocks(batches: int) -> None:
    race, asked = Race("max", 1, batches), []
    runner = race.enter()
    for done in range(1, batches):
        runner.stops(done, lambda done=done: asked.append(done) or 0.5)  # type: ignore[misc,func-returns-value]
    assert len(asked) <= 32
    assert len(set(np.diff(asked))) == 1
    assert asked[-1] >= batches * 30 / 32
    run(race, np.full(batches, 0.9))
    assert run(race, np.full(batches, 0.1))[1] <= batches / 2


def test_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    def whole() -> list[tuple[float, int]]:
        rng, race = np.random.default_rng(7), Race("min", 2, 12)
        return [run(race, rng.normal(rng.uniform(), 0.05, 12)) for _ in range(20)]

    def resumed() -> list[tuple[float, int]]:
        rng, result = np.random.default_rng(7), []
        state: dict[str, Any] | None = None
        for _ in range(20):
            race = Race("min", 2, 12)
            if state is not None:
                race.load_state_dict(json.loads(state))  # type: ignore[arg-type]
            batches = rng.normal(rng.uniform(), 0.05, 12)
            race.enter().stops(1, lambda: 0.0)  # this one is interrupted, and leaves no trace
            result.append(run(race, batches))
            state = json.dumps(race.state_dict())  # type: ignore[assignment]
        return result

    assert whole() == resumed()
    assert min(needed for _, needed in whole()) < 12


def test_the_work_of_each_generation_is_in_the_history() -> None:
    race = Race("max", 1, 4)
    race.shares = [1.0, 0.5, 0.75, 1.0]
    history = [{"evaluations": 2}, {"evaluations": 2}, {"evaluations": 4}]
    work = [entry["work"] for entry in race.with_work(history)]
    assert work[0] == 0.75
    assert math.isnan(work[1])  # a generation in which nothing was evaluated
    assert work[2] == 0.875
    assert history[0] == {"evaluations": 2}
