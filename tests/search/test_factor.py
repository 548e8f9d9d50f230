from __future__ import annotations

import numpy as np
import pytest

from lightning_slimga.search import SearchSpace
from lightning_slimga.search.factor import EvaluationFactor
from tests.search.spaces import layers_of


def test_starts_from_the_ranks_within_the_layer_and_overall():
    space = SearchSpace(layers_of((2, 3)), np.array([0.1, 0.5, 3.0, 1.0, 2.0]), [])
    factor = EvaluationFactor(space, rate=0.3)
    within = np.array([1 / 2, 2 / 2, 3 / 3, 1 / 3, 2 / 3])
    overall = np.array([1 / 5, 2 / 5, 5 / 5, 3 / 5, 4 / 5])
    assert factor.values == pytest.approx((within + overall) / 2)


def test_moves_by_what_the_elite_keeps_more_often_than_everyone():
    space = SearchSpace(layers_of((4,)), np.arange(4.0), [])
    factor = EvaluationFactor(space, rate=0.5)
    start = factor.values.copy()
    everyone = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)
    factor.follow(everyone[:2], everyone)
    assert factor.values - start == pytest.approx(0.5 * np.array([0, 0, 0.25, -0.25]))


def test_rate_zero_keeps_the_start():
    space = SearchSpace(layers_of((3,)), np.arange(3.0), [])
    factor = EvaluationFactor(space, rate=0.0)
    start = factor.values.copy()
    factor.follow(np.array([[True, False, False]]), np.array([[False, True, True]]))
    assert np.array_equal(factor.values, start)


def test_order_within_a_layer_starts_as_that_of_the_scores():
    rng = np.random.default_rng(0)
    scores = rng.exponential(1.0, 30)
    values = EvaluationFactor(SearchSpace(layers_of((10, 20)), scores, []), rate=0.1).values
    for part in (slice(0, 10), slice(10, 30)):
        assert np.array_equal(np.argsort(values[part]), np.argsort(scores[part]))


def test_starts_from_the_effects_where_the_space_has_them():
    scores, effects = np.arange(4.0), np.array([3.0, 1.0, 2.0, 0.0])
    space = SearchSpace(layers_of((4,)), scores, [], effects=effects)
    assert EvaluationFactor(space, rate=0.0).values.tolist() == [1.0, 0.5, 0.75, 0.25]
