from __future__ import annotations

import numpy as np

from benchmarks.search_controls import HillClimbing, RandomSearch
from lightning_slimga.search import Limits
from tests.search.spaces import drive, hidden_metric, make_space


def test_random_search_keeps_the_best_scores_of_random_widths():
    space = make_space((20, 30, 40))
    search = RandomSearch(space, population_size=10, limits=Limits(3))
    drive(search, hidden_metric(space))
    assert search.evaluations == 30
    masks = np.array([mask for mask, _ in search.elite(30)])
    assert space.feasible(masks).all()
    assert len(np.unique(space.counts(masks), axis=0)) > 10
    for mask in masks:
        for start, size in zip(space.starts, space.grid.size, strict=True):
            kept, score = mask[start : start + size], space.scores[start : start + size]
            assert score[kept].min() >= score[~kept].max(initial=0)


def test_hill_climbing_starts_uniform_and_moves_from_the_best():
    space = make_space((20, 20, 20), 0.5)
    metric = hidden_metric(space)
    search = HillClimbing(space, limits=Limits(60))
    uniform = space.repair(np.ones((1, 60), bool), space.scores)[0]
    assert np.array_equal(search.ask()[0], uniform)
    drive(search, metric)
    bests = [entry["best"] for entry in search.history]
    assert bests == sorted(bests)
    assert bests[-1] > metric(uniform)
