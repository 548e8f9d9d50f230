from __future__ import annotations

import numpy as np
import pytest

from lightning_slimga.search.operators import (
    inherit_layers,
    inherit_nearby,
    shift_widths,
    swap_borderline,
)
from tests.search.spaces import make_space

SIZES = (8, 12, 16)


def marked(num_parents: int, space) -> np.ndarray:
    """Parents whose layers tell by their first channels, in binary, whose they are."""
    parents = np.zeros((num_parents, space.num_channels), dtype=bool)
    for part in space.slices:
        for bit in range(4):
            parents[:, part.start + bit] = np.arange(num_parents) >> bit & 1
    return parents


def origins(children: np.ndarray, space) -> np.ndarray:
    """The parent of each layer of each child; fails for a layer that is nobody's."""
    found = np.stack(
        [children[:, part.start : part.start + 4] @ (1 << np.arange(4)) for part in space.slices], 1
    )
    for layer, part in enumerate(space.slices):
        expected = marked(16, space)[found[:, layer], part]
        assert np.array_equal(children[:, part], expected)
    return found


def test_each_layer_comes_whole_from_a_parent_and_more_often_from_a_better_one():
    space = make_space(SIZES)
    children = inherit_layers(marked(8, space), 5000, space, np.random.default_rng(0))
    shares = np.bincount(origins(children, space).ravel(), minlength=8) / children.shape[0] / 3
    assert (np.diff(shares) < 0).all()
    assert shares[0] > 3 * shares[7]


@pytest.mark.parametrize("num_parents", [1, 2, 16])
def test_neighbours_are_at_most_three_from_the_anchor(num_parents):
    space = make_space(SIZES)
    parents = marked(num_parents, space)
    found = origins(inherit_nearby(parents, 3000, space, np.random.default_rng(0)), space)
    assert np.ptp(found, axis=1).max() <= 6
    assert set(found.ravel().tolist()) == set(range(num_parents))


def test_shift_changes_the_wanted_number_of_layers_and_at_least_one():
    widths = np.full((4000, 20), 10.0)
    few = shift_widths(widths, np.random.default_rng(0), layers=0.0, sigma=0.3)
    some = shift_widths(widths, np.random.default_rng(0), layers=4.0, sigma=0.3)
    assert ((few != widths).sum(axis=1) == 1).all()
    assert (some != widths).sum(axis=1).mean() == pytest.approx(4.8, abs=0.1)
    changes = np.log(few / widths)[few != widths]
    assert changes.mean() == pytest.approx(0, abs=0.02)
    assert changes.std() == pytest.approx(0.3, abs=0.02)


def test_swap_keeps_every_width():
    space = make_space(SIZES)
    rng = np.random.default_rng(0)
    masks = rng.random((50, space.num_channels)) < 0.5
    swapped = swap_borderline(
        space, masks, rng.random(space.num_channels), rng, rate=1.0, noise=0.3
    )
    assert np.array_equal(space.counts(swapped), space.counts(masks))
    assert (swapped != masks).any(axis=1).all()


def test_swap_leaves_channels_far_from_the_border():
    space = make_space(SIZES)
    factor = np.concatenate([np.linspace(0, 1, size) for size in SIZES])
    mask = factor > 0.5
    rng = np.random.default_rng(0)
    swapped = swap_borderline(
        space, np.repeat(mask[None], 500, axis=0), factor, rng, rate=1.0, noise=0.15
    )
    changed = (swapped != mask).mean(axis=0)
    near, far = np.abs(factor - 0.5) < 0.15, np.abs(factor - 0.5) > 0.4
    assert changed[near].mean() > 5 * changed[far].mean()
