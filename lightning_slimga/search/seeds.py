"""Where a search starts: the cuts people make without one, and random widths."""

from __future__ import annotations

import numpy as np

from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.widths import BoolArray, FloatArray

_SPREAD = 0.5  # standard deviation of the log of a random width


def rankings(space: SearchSpace) -> dict[str, BoolArray]:
    """Return the seeds that need no luck, by name, each a mask of shape (C,) under budget.

    - gamma_threshold: the highest scores anywhere in the network (network slimming).
    - gamma_per_cost: the highest scores divided by the cost that removing the channel saves.
    - uniform: the same share of every layer, highest scores first.
    - effect_threshold, effect_per_cost, effect_uniform: the same by the effects of the space,
      where it has been given any.
    """
    seeds = {
        "gamma_threshold": _highest(space, space.scores),
        "gamma_per_cost": _highest(space, space.scores / _saving(space)[space.layer_ids]),
        "uniform": _uniform(space, space.scores),
    }
    if space.effects is not space.scores:
        seeds["effect_threshold"] = _highest(space, space.effects)
        seeds["effect_per_cost"] = _highest(space, space.effects / _saving(space)[space.layer_ids])
        seeds["effect_uniform"] = _uniform(space, space.effects)
    return seeds


def _uniform(space: SearchSpace, ranking: FloatArray) -> BoolArray:
    everything = np.ones((1, space.num_channels), dtype=np.bool_)
    mask: BoolArray = space.repair(everything, ranking)[0]
    return mask


def random_widths(space: SearchSpace, rng: np.random.Generator, count: int) -> FloatArray:
    """Draw widths, shape (count, L), log-normal around half of each layer; repair scales them."""
    spread = np.exp(_SPREAD * rng.standard_normal((count, space.num_layers)))
    return np.asarray(0.5 * space.grid.size * spread, dtype=np.float64)


def random_masks(
    space: SearchSpace,
    factor: FloatArray,
    rng: np.random.Generator,
    count: int,
    share: FloatArray | None = None,
) -> BoolArray:
    """Draw masks of random widths under budget with the best channels kept.

    Args:
        space: the layers and budgets.
        factor: value of each channel, shape (C,).
        rng: the search's generator.
        count: masks wanted.
        share: scales the limits, per mask, shape (count,); default 1.

    Returns:
        Masks, shape (count, C).
    """
    everything = np.ones((count, space.num_channels), dtype=np.bool_)
    return space.repair(everything, factor, widths=random_widths(space, rng, count), share=share)


def _highest(space: SearchSpace, ranking: FloatArray) -> BoolArray:
    """Drop channels in ascending order of `ranking` until the budgets are met, then fill up."""
    order = np.argsort(ranking, kind="stable")

    def without(dropped: int) -> BoolArray:
        mask = np.ones((1, space.num_channels), dtype=np.bool_)
        mask[0, order[:dropped]] = False
        return mask

    too_few, enough = -1, space.num_channels
    while enough - too_few > 1:
        dropped = (enough + too_few) // 2
        legal = space.grid.counts(space.grid.levels(space.counts(without(dropped))))
        if space.fits(legal)[0]:
            enough = dropped
        else:
            too_few = dropped
    highest: BoolArray = space.repair(without(enough), ranking)[0]
    return highest


def _saving(space: SearchSpace) -> FloatArray:
    """Share of the limits that one channel less saves in each layer of the full network, (L,)."""
    full = space.grid.size[None]
    fewer = full - np.eye(space.num_layers, dtype=np.int64)
    saved: FloatArray = np.zeros(space.num_layers)
    for budget in space.budgets:
        most, less = (np.asarray(budget.cost(c), dtype=np.float64) for c in (full, fewer))
        saved += (most - less) / budget.limit
    # Free channels rank highest.
    return np.asarray(np.maximum(saved, np.finfo(np.float64).tiny), dtype=np.float64)
