from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_slimga.search import Limits, ParetoSearch, SearchSpace
from tests.search.spaces import drive, hidden_metric, layers_of, make_space


def run(space, metric, **arguments):
    search = ParetoSearch(space, **{"population_size": 12, "limits": Limits(6), **arguments})
    told = []

    def noted(mask):
        told.append((metric(mask), float(space.costs(mask[None])["macs"][0])))
        return told[-1][0]

    drive(search, noted)
    return search, told


@pytest.mark.parametrize("mode", ["max", "min"])
def test_front_is_what_nothing_told_dominates(mode):
    space = make_space((12, 24, 24), 1.0)
    sign = 1 if mode == "max" else -1
    metric = hidden_metric(space)
    search, told = run(space, lambda mask: sign * metric(mask), mode=mode)
    expected = {
        (metric, cost)
        for metric, cost in told
        if not any(
            (sign * m >= sign * metric and c <= cost) and (m, c) != (metric, cost) for m, c in told
        )
    }
    assert {(point.metric, point.cost) for point in search.front} == expected
    costs = [point.cost for point in search.front]
    assert costs == sorted(costs)


def test_front_spans_the_range_of_costs():
    space = make_space((12, 24, 24), 1.0)
    search, told = run(space, hidden_metric(space), smallest=0.2)
    limit = space.budgets[0].limit
    assert min(cost for _, cost in told) < 0.21 * limit
    assert max(cost for _, cost in told) > 0.98 * limit
    assert len(search.front) > 8


def test_generations_improve_the_front():
    space = make_space((12, 24, 24, 24), 1.0)
    _, told = run(space, hidden_metric(space), limits=Limits(12))

    def area(points):
        grid = np.linspace(0.2, 1.0, 50) * space.budgets[0].limit
        return np.mean([max((m for m, c in points if c <= at), default=0.0) for at in grid])

    assert area(told) > area(told[:12]) + 0.02


def test_nan_is_never_on_the_front():
    space = make_space((12, 24, 24), 1.0)
    metric = hidden_metric(space)
    search, _ = run(space, lambda mask: math.nan if mask.sum() % 3 == 0 else metric(mask))
    assert search.front
    assert all(math.isfinite(point.metric) for point in search.front)


def test_best_is_the_best_metric():
    space = make_space((12, 24, 24), 1.0)
    search, told = run(space, hidden_metric(space))
    assert search.best[1] == max(metric for metric, _ in told) == search.front[-1].metric


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smallest": 0.0}, "`smallest` to lie between 0 and 1, but got 0"),
        ({"smallest": 1.0}, "`smallest` to lie between 0 and 1, but got 1"),
        ({"space": SearchSpace(layers_of((3,)), np.ones(3), [])}, "`space` to have a budget"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ParetoSearch(**{"space": make_space(), **change})
