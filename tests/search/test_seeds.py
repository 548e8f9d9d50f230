from __future__ import annotations

import numpy as np
import pytest

from lightning_slimga.search import Budget, SearchSpace
from lightning_slimga.search.seeds import random_masks, rankings
from tests.search.spaces import layers_of, make_space


def weighted(costs):
    return lambda counts: (counts * np.array(costs)).sum(axis=1)


def test_threshold_keeps_the_highest_scores_of_the_network():
    scores = np.array([9.0, 1.0, 8.0, 2.0, 7.0, 3.0])
    space = SearchSpace(layers_of((3, 3)), scores, [Budget("n", 3, weighted([1, 1]))])
    assert rankings(space)["gamma_threshold"].tolist() == (scores >= 7).tolist()


def test_effects_give_seeds_of_their_own():
    scores = np.array([9.0, 1.0, 8.0, 2.0, 7.0, 3.0])
    budgets = [Budget("n", 3, weighted([1, 1]))]
    space = SearchSpace(layers_of((3, 3)), scores, budgets, effects=10 - scores)
    by_scores = rankings(SearchSpace(layers_of((3, 3)), scores, budgets))
    by_effects = rankings(SearchSpace(layers_of((3, 3)), 10 - scores, budgets))
    expected = by_scores | {
        "effect_threshold": by_effects["gamma_threshold"],
        "effect_per_cost": by_effects["gamma_per_cost"],
        "effect_uniform": by_effects["uniform"],
    }
    found = rankings(space)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert not np.array_equal(found["effect_threshold"], found["gamma_threshold"])


def test_per_cost_divides_by_what_a_channel_saves():
    scores = np.array([4.0, 4.1, 4.2, 1.0, 1.1, 1.2])
    space = SearchSpace(layers_of((3, 3)), scores, [Budget("n", 14, weighted([10, 1]))])
    kept = space.counts(np.stack(list(rankings(space).values())))
    assert dict(zip(rankings(space), kept.tolist(), strict=True)) == {
        "gamma_threshold": [1, 3],
        "gamma_per_cost": [1, 3],
        "uniform": [1, 3],
    }
    cheap = SearchSpace(layers_of((3, 3)), scores, [Budget("n", 32, weighted([10, 1]))])
    assert cheap.counts(rankings(cheap)["gamma_per_cost"][None]).tolist() == [[2, 3]]
    assert cheap.counts(rankings(cheap)["gamma_threshold"][None]).tolist() == [[3, 2]]


def test_uniform_takes_the_same_share_of_each_layer_best_first():
    space = make_space((40, 40, 40), 0.25)
    mask = rankings(space)["uniform"]
    kept = space.counts(mask[None])[0]
    assert kept.max() - kept.min() <= 2
    for start in (0, 40, 80):
        part = slice(start, start + 40)
        assert space.scores[part][mask[part]].min() > space.scores[part][~mask[part]].max()


@pytest.mark.parametrize("round_to", [1, 4])
def test_every_seed_is_under_budget_and_as_large_as_possible(round_to):
    space = make_space((24, 36, 48), 0.4, params=0.5, round_to=round_to, min_channels=2)
    masks = np.stack(list(rankings(space).values()))
    drawn = random_masks(space, space.scores, np.random.default_rng(0), 20)
    everything = np.concatenate([masks, drawn])
    assert space.feasible(everything).all()
    assert np.array_equal(space.repair(everything, space.scores), everything)
    assert len(np.unique(space.counts(drawn), axis=0)) > 5


def test_a_layer_of_zeros_is_not_emptied_by_the_threshold():
    scores = np.concatenate([np.zeros(8), np.ones(8)])
    space = SearchSpace(
        layers_of((8, 8)), scores, [Budget("n", 6, weighted([1, 1]))], min_channels=2
    )
    assert space.counts(rankings(space)["gamma_threshold"][None]).tolist() == [[2, 4]]
