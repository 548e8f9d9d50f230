from __future__ import annotations

import numpy as np
import pytest

from lightning_slimga.search.operators import (
    draw_layers,
    inherit_layers,
    mix_bits,
    rank_weights,
    shift_widths,
    swap_borderline,
)
from tests.search.spaces import make_space

SIZES = (8, 12, 16)


def test_rank_weights_fall_and_sum_to_one():
    weights = rank_weights(8)
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights) < 0).all()


def test_better_parents_give_more_layers():
    drawn = draw_layers(4, (5000, 3), np.random.default_rng(0))
    shares = np.bincount(drawn.ravel()) / drawn.size
    assert np.abs(shares - rank_weights(4)).max() < 0.02


def test_each_layer_comes_whole_from_the_parent_drawn():
    space = make_space(SIZES)
    rng = np.random.default_rng(0)
    parents = rng.random((4, space.num_channels)) < 0.5
    origin = rng.integers(4, size=(10, 3))
    children = inherit_layers(space, parents, origin)
    for child, drawn in zip(children, origin, strict=True):
        for layer, part in enumerate((slice(0, 8), slice(8, 20), slice(20, 36))):
            assert np.array_equal(child[part], parents[drawn[layer], part])


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


def test_bits_are_mixed_and_flipped_at_the_rate():
    space = make_space(SIZES)
    parents = np.repeat(np.array([[True], [True]]), space.num_channels, axis=1)
    children = mix_bits(space, parents, 1000, np.random.default_rng(0), rate=0.1)
    assert (~children).mean() == pytest.approx(0.1, abs=0.01)
