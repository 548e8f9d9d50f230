from __future__ import annotations

import numpy as np
import pytest

from lightning_slimga.search import Budget, SearchSpace
from tests.search.spaces import chain_macs, layers_of, make_space


def test_counts_are_the_kept_channels_of_each_layer():
    space = make_space((2, 3))
    masks = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=bool)
    assert space.counts(masks).tolist() == [[1, 2], [0, 1]]


def test_costs_are_those_of_the_counts():
    space = make_space((2, 3))
    mask = np.array([[1, 0, 1, 1, 0]], dtype=bool)
    assert space.costs(mask)["macs"].tolist() == [9 * 16 * 1 * 1 + 9 * 4 * 1 * 2]


@pytest.mark.parametrize(
    ("kept", "feasible"), [((1, 1), True), ((2, 3), False), ((0, 3), False), ((2, 1), True)]
)
def test_feasible_means_under_budget_and_legal_widths(kept, feasible):
    space = make_space((2, 3), share=0.8)
    mask = np.concatenate([np.arange(2) < kept[0], np.arange(3) < kept[1]])
    assert space.feasible(mask[None]).tolist() == [feasible]


def test_round_to_makes_other_widths_illegal():
    space = make_space((8, 8), share=1.0, round_to=4)
    widths = {int(k): np.concatenate([np.arange(8) < k, np.ones(8, bool)]) for k in range(9)}
    legal = [k for k, mask in widths.items() if space.feasible(mask[None])[0]]
    assert legal == [4, 8]


def test_layer_smaller_than_round_to_stays_whole():
    space = make_space((3, 16), share=0.6, round_to=8)
    masks = np.zeros((1, 19), dtype=bool)
    assert space.counts(space.repair(masks, space.scores))[0, 0] == 3


def test_already_met():
    assert make_space(share=1.0).already_met
    assert not make_space(share=0.99).already_met


def test_no_budget_is_met_by_everything():
    space = SearchSpace(layers_of((3, 4)), np.ones(7), [])
    masks = np.zeros((1, 7), dtype=bool)
    assert space.already_met
    assert space.repair(masks, space.scores).all()


def test_impossible_budget_names_the_smallest_reachable_cost():
    macs = chain_macs([1, 1])
    with pytest.raises(
        ValueError, match=r"budget `macs` to be reachable, but its limit is 17 .* has 108\."
    ):
        SearchSpace(
            layers_of((4, 4)),
            np.ones(8),
            [Budget("macs", 17, macs)],
            min_channels=3,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "`layers` to name at least one layer"),
        ({"layers": [("a", slice(1, 8))]}, "`layers` to cover the mask without gaps"),
        ({"layers": [("a", slice(0, 0)), ("b", slice(0, 8))]}, "without gaps"),
        ({"scores": np.ones(7)}, r"`scores` to have shape \(8,\)"),
        ({"scores": np.full(8, np.nan)}, "`scores` to be finite and not negative"),
        ({"scores": np.full(8, -1.0)}, "`scores` to be finite and not negative"),
        ({"effects": np.ones(7)}, r"`effects` to have shape \(8,\)"),
        ({"effects": np.full(8, np.inf)}, "`effects` to be finite and not negative"),
        ({"round_to": 0}, "`round_to` to be at least 1, but got 0"),
        ({"min_channels": 0}, "`min_channels` to be at least 1, but got 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"layers": layers_of((4, 4)), "scores": np.ones(8), "budgets": [], **change}
    with pytest.raises(ValueError, match=message):
        SearchSpace(**arguments)


@pytest.mark.parametrize("masks", [np.ones(36, bool), np.ones((2, 35), bool), np.ones((2, 36))])
def test_masks_of_another_shape_or_type_are_refused(masks):
    with pytest.raises(
        ValueError, match=r"`masks` to be a boolean array of shape \(population, 36"
    ):
        make_space().counts(masks)
