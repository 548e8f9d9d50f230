from __future__ import annotations

import math
import random

import numpy as np
import pytest

from benchmarks.search_controls import RandomSearch
from lightning_slimga.search import GeneticSearch, Limits, Rates
from tests.search.spaces import drive, hidden_metric, make_space

SMALL = {"population_size": 6, "limits": Limits(4)}


def run(space, metric, **arguments):
    search = GeneticSearch(space, **{**SMALL, **arguments})
    drive(search, metric)
    return search


def test_asks_only_for_feasible_masks_and_never_twice():
    space = make_space()
    asked = []
    run(space, lambda mask: asked.append(mask) or hidden_metric(space)(mask))
    assert space.feasible(np.array(asked)).all()
    assert len({mask.tobytes() for mask in asked}) == len(asked) == 24


def test_ask_is_a_question_and_changes_nothing():
    search = GeneticSearch(make_space(), **SMALL)
    first, second = search.ask(), search.ask()
    assert np.array_equal(first, second)
    first[0][:] = False
    assert np.array_equal(search.ask(), second)


def test_best_and_elite_are_the_highest_told():
    space = make_space()
    told = {}

    def metric(mask):
        return told.setdefault(mask.tobytes(), hidden_metric(space)(mask))

    search = run(space, metric)
    expected = sorted(told.values(), reverse=True)
    assert search.best[1] == expected[0]
    assert [value for _, value in search.elite(5)] == expected[:5]
    assert all(told[mask.tobytes()] == value for mask, value in search.elite(5))


def test_mode_min_is_mode_max_of_the_negated_metric():
    space = make_space()
    metric = hidden_metric(space)
    high = run(space, metric, mode="max")
    low = run(space, lambda mask: -metric(mask), mode="min")
    assert low.best[1] == -high.best[1]
    assert np.array_equal(low.best[0], high.best[0])


def test_same_seed_same_search_and_other_seed_another():
    space = make_space()
    metric = hidden_metric(space)
    states = [run(space, metric, seed=seed).state_dict() for seed in (1, 1, 2)]
    assert states[0]["archive"] == states[1]["archive"]
    assert states[0]["archive"] != states[2]["archive"]


def test_order_of_telling_makes_no_difference():
    space = make_space()
    metric = hidden_metric(space)
    forward, backward = GeneticSearch(space, **SMALL), GeneticSearch(space, **SMALL)
    drive(forward, metric)
    while not backward.done:
        mask = backward.ask()[-1]
        backward.tell([mask], [metric(mask)])
    assert backward.state_dict()["archive"] == forward.state_dict()["archive"]


def test_global_generators_are_untouched():
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    space = make_space()
    run(space, hidden_metric(space))
    assert (random.random(), np.random.random()) == expected


def test_history_describes_each_generation():
    space = make_space()
    told = []
    metric = hidden_metric(space)
    search = run(space, lambda mask: told.append(metric(mask)) or told[-1])
    assert [entry["generation"] for entry in search.history] == [1, 2, 3, 4]
    assert [entry["evaluations"] for entry in search.history] == [6, 12, 18, 24]
    for index, entry in enumerate(search.history):
        own = told[6 * index : 6 * index + 6]
        assert entry["best"] == max(told[: 6 * index + 6])
        assert entry["mean"] == pytest.approx(np.mean(own))
        assert entry["std"] == pytest.approx(np.std(own))
    assert search.history[-1]["widths"] == space.counts(search.best[0][None])[0].tolist()
    seconds = [entry["seconds"] for entry in search.history]
    assert seconds == sorted(seconds)


def test_seeds_are_in_the_first_generation_and_reported():
    space = make_space()
    metric = hidden_metric(space)
    search = run(space, metric, population_size=6)
    assert {"gamma_threshold", "gamma_per_cost", "uniform", "random_widths_0"} <= set(search.seeds)
    uniform = space.repair(np.ones((1, space.num_channels), bool), space.scores)[0]
    assert search.seeds["uniform"] == metric(uniform)
    assert search.best[1] >= max(search.seeds.values())


def test_not_finite_counts_as_worst():
    space = make_space()
    metric = hidden_metric(space)
    calls = iter(range(1000))
    values = [math.nan, math.inf, -math.inf]

    def broken(mask):
        call = next(calls)
        return values[call % 3] if call % 2 else metric(mask)

    search = run(space, broken)
    assert math.isfinite(search.best[1])
    assert search.history[0]["failed"] == 3
    assert all(math.isfinite(value) for _, value in search.elite(12))


@pytest.mark.parametrize(
    ("limits", "reason", "evaluations"),
    [
        ({}, "finished 4 generations", 24),
        ({"max_evaluations": 8}, "reached max_evaluations=8", 8),
        ({"max_evaluations": 3}, "reached max_evaluations=3", 3),
        ({"generations": 1}, "finished 1 generations", 6),
    ],
)
def test_stops_at_the_limit_and_says_so(limits, reason, evaluations):
    space = make_space()
    search = run(space, hidden_metric(space), limits=Limits(**{"generations": 4, **limits}))
    assert search.stop_reason == reason
    assert search.evaluations == search.history[-1]["evaluations"] == evaluations
    assert search.ask() == []


def test_patience_counts_generations_without_a_better_best():
    space = make_space()
    first = GeneticSearch(space, **SMALL).ask()[0]
    search = run(
        space,
        lambda mask: 1.0 if np.array_equal(mask, first) else 0.5 * hidden_metric(space)(mask),
        limits=Limits(50, patience=3),
    )
    assert search.stop_reason == "no better candidate for 3 generations (patience=3)"
    assert len(search.history) == 4


def test_max_time_ends_within_a_generation_and_keeps_what_was_told():
    space = make_space()
    search = GeneticSearch(space, population_size=6, limits=Limits(4, max_time=1e-9))
    drive(search, hidden_metric(space))
    assert search.evaluations == 1
    assert search.stop_reason == "reached max_time=1e-09 seconds"
    assert search.history[0]["unique"] == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0.1, "no signal: all 8 candidates have the same metric 0.1"), (math.nan, "no signal: none")],
)
def test_a_search_without_signal_stops_early(value, reason):
    search = GeneticSearch(make_space(), population_size=8, limits=Limits(50))
    drive(search, lambda mask: value)
    assert search.stop_reason.startswith(reason)
    assert search.evaluations == 8


def test_a_search_whose_metrics_drown_in_noise_stops_early():
    space = make_space()
    search = GeneticSearch(space, population_size=8, limits=Limits(50))
    metric, search.noise = hidden_metric(space), 1e9
    drive(search, metric)
    assert search.stop_reason.startswith("no signal: the metrics of 8 candidates lie within")
    assert search.evaluations == 8


def test_a_space_with_few_masks_is_exhausted():
    space = make_space((2, 2), 0.9)
    search = run(space, hidden_metric(space), limits=Limits(100))
    assert search.stop_reason == "variation finds no mask that is new"
    assert search.evaluations <= 15


def test_best_before_any_metric_is_an_error():
    with pytest.raises(RuntimeError, match="Expected a told candidate before `best`"):
        _ = GeneticSearch(make_space(), **SMALL).best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "up"}, "`mode` to be 'max' or 'min', but got 'up'"),
        ({"population_size": 0}, "`population_size` to be at least 1, but got 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        GeneticSearch(make_space(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generations": 0}, "`generations` to be at least 1, but got 0"),
        ({"max_evaluations": 0}, "`max_evaluations` to be at least 1, but got 0"),
        ({"max_time": 0}, "`max_time` to be positive seconds, but got 0"),
        ({"max_time": math.nan}, "`max_time` to be positive seconds, but got nan"),
        ({"patience": 0}, "`patience` to be at least 1, but got 0"),
    ],
)
def test_bad_limits_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Limits(**change)


def test_tell_refuses_what_was_not_asked():
    search = GeneticSearch(make_space(), **SMALL)
    mask = search.ask()[0]
    with pytest.raises(ValueError, match="the same length, but got 1 and 2"):
        search.tell([mask], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"masks that `ask\(\)` returned"):
        search.tell([~mask], [0.1])
    with pytest.raises(ValueError, match="each once"):
        search.tell([mask, mask], [0.1, 0.1])
    search.tell([mask], [0.1])
    with pytest.raises(ValueError, match="no metric yet"):
        search.tell([mask], [0.1])


def test_a_factor_that_does_not_learn_finds_something_else():
    space = make_space()
    plain = run(space, hidden_metric(space), evaluation_factor=False)
    full = run(space, hidden_metric(space))
    assert plain.state_dict()["archive"] != full.state_dict()["archive"]


def test_a_population_of_one_breeds():
    search = run(make_space(), hidden_metric(make_space()), population_size=1, limits=Limits(12))
    assert search.evaluations == 12


@pytest.mark.parametrize("mode", ["max", "min"])
def test_hall_of_fame_is_the_elite_and_both_are_the_archive_sorted(mode):
    space = make_space()
    coarse = hidden_metric(space)
    search = run(space, lambda mask: round(coarse(mask), 1), mode=mode)  # many are equal
    told = [(key, metric) for key, metric in search.state_dict()["archive"]]
    expected = sorted(told, key=lambda one: one[1], reverse=mode == "max")[:6]
    assert [(one.key, one.metric) for one in search.hall_of_fame] == expected
    for one, (mask, value) in zip(search.hall_of_fame, search.elite(6), strict=True):
        assert np.array_equal(one.mask, mask)
        assert one.metric == value


def test_a_statistic_that_is_registered_is_in_the_history():
    space, told = make_space(), []
    metric = hidden_metric(space)
    search = GeneticSearch(space, **SMALL)
    search.statistics.register("median", lambda values: float(np.median(values)))
    drive(search, lambda mask: told.append(metric(mask)) or told[-1])
    medians = [np.median(told[6 * i : 6 * i + 6]) for i in range(4)]
    assert [entry["median"] for entry in search.history] == medians


def test_it_says_in_a_line_where_it_stands():
    search = GeneticSearch(make_space(), **SMALL)
    assert repr(search) == "GeneticSearch(generation 0 of 4, 0 evaluations)"
    search.tell(search.ask()[:2], [0.25, 0.5])
    assert repr(search) == "GeneticSearch(generation 0 of 4, 2 evaluations, best 0.5)"
    assert repr(search.hall_of_fame[0]).endswith("of 36 channels, metric 0.5)")
    assert repr(search.space).startswith("SearchSpace(3 layers, 36 channels, macs <= ")


def test_beats_random_search_and_seeds_at_equal_evaluations():
    gains = []
    for seed in range(6):
        space = make_space([12, 12, 24, 24, 24, 48, 48, 48], 0.35, seed=seed)
        metric = hidden_metric(space, seed)
        genetic = run(space, metric, population_size=12, limits=Limits(8), seed=seed)
        chance = RandomSearch(space, population_size=12, limits=Limits(8), seed=seed)
        drive(chance, metric)
        assert genetic.evaluations == chance.evaluations == 96
        gains.append(genetic.best[1] - max(chance.best[1], *genetic.seeds.values()))
    assert np.mean(gains) > 0.01
    assert min(gains) > -0.005


def test_rates_are_taken():
    space = make_space()
    calm = run(space, hidden_metric(space), rates=Rates(sigma=0.01, siblings=1))
    assert calm.rates.sigma == 0.01
    assert calm.done
