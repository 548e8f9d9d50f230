"""Our operators, which `breeding` composes: new masks from good ones. Chance is a generator.

What a candidate is worth depends first on how wide its layers are and then on which channels they
keep. So the operators work on whole layers: they are inherited as a whole, widths are shifted
between layers, and inside a layer only channels near the border between kept and dropped change.
"""

from __future__ import annotations

import numpy as np

from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.widths import BoolArray, FloatArray, IntArray

_LOYALTY = 0.5  # half the range of the factor: what a kept channel is ahead of a dropped one
_NEAR = 4  # neighbours that a child inherits from


def rank_weights(count: int) -> FloatArray:
    """Return weights for `count` parents, best first, falling with the log of the rank, sum 1."""
    weights = np.log(count + 0.5) - np.log(np.arange(1, count + 1))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def inherit_layers(
    parents: BoolArray, count: int, space: SearchSpace, rng: np.random.Generator
) -> BoolArray:
    """Crossover: each layer comes whole from one of the parents, more often from a better one.

    Args:
        parents: masks, best first, shape (E, C).
        count: children wanted.
        space: gives the layers.
        rng: the search's generator.

    Returns:
        Children, shape (count, C); over budget or under until repaired.
    """
    weights = rank_weights(len(parents))
    origin = rng.choice(len(parents), (count, space.num_layers), p=weights)
    return copy_layers(parents, origin, space)


def inherit_nearby(
    parents: BoolArray, count: int, space: SearchSpace, rng: np.random.Generator
) -> BoolArray:
    """Crossover: each child has an anchor among the parents and inherits from those around it.

    Args:
        parents: masks, cheapest first, so that neighbours cost about the same, shape (E, C).
        count: children wanted.
        space: gives the layers.
        rng: the search's generator.

    Returns:
        Children, shape (count, C).
    """
    shape = (count, space.num_layers)
    anchors = rng.integers(len(parents), size=(count, 1))
    steps = rng.choice(min(_NEAR, len(parents)), shape, p=rank_weights(min(_NEAR, len(parents))))
    origin = np.clip(anchors + steps * rng.choice((-1, 1), shape), 0, len(parents) - 1)
    return copy_layers(parents, origin, space)


def copy_layers(parents: BoolArray, origin: IntArray, space: SearchSpace) -> BoolArray:
    """Return children, shape (P, C), whose layers come from the parents `origin`, shape (P, L)."""
    children = np.empty((len(origin), space.num_channels), dtype=np.bool_)
    for layer, part in enumerate(space.slices):
        children[:, part] = parents[origin[:, layer], part]
    return children


def shift_widths(
    widths: FloatArray, rng: np.random.Generator, *, layers: float, sigma: float
) -> FloatArray:
    """Mutation: make some layers wider or narrower; repair takes from the others what it costs.

    Args:
        widths: kept channels, shape (..., L), positive.
        rng: the search's generator.
        layers: layers changed per child on average; at least one is.
        sigma: standard deviation of the log of the change.

    Returns:
        Wanted widths, shape (..., L).
    """
    num_layers = widths.shape[-1]
    changed = rng.random(widths.shape) < layers / num_layers
    always = rng.integers(num_layers, size=(*widths.shape[:-1], 1))
    np.put_along_axis(changed, always, True, axis=-1)
    change = np.exp(np.where(changed, sigma * rng.standard_normal(widths.shape), 0.0))
    wanted: FloatArray = widths * change
    return wanted


def swap_borderline(
    space: SearchSpace,
    masks: BoolArray,
    factor: FloatArray,
    rng: np.random.Generator,
    *,
    rate: float,
    noise: float,
) -> BoolArray:
    """Mutation: in some layers, choose the channels anew by their factor, what is kept favoured.

    Channels whose factor lies far from the border keep their place, so mostly those near it swap.
    Widths do not change.

    Args:
        space: gives the layers.
        masks: True = keep, shape (P, C).
        factor: evaluation factor, shape (C,).
        rng: the search's generator.
        rate: share of the layers changed.
        noise: scale of the Gumbel noise added to the factor.
    """
    result: BoolArray = masks.copy()
    chosen = rng.random((len(masks), space.num_layers)) < rate
    for row, layer in zip(*np.nonzero(chosen), strict=True):
        part = space.slices[layer]
        kept = masks[row, part]
        value = factor[part] + _LOYALTY * kept + noise * rng.gumbel(size=len(kept))
        best = np.argsort(-value, kind="stable")[: kept.sum()]
        result[row, part] = False
        result[row, part.start + best] = True
    return result
