"""Variation: new masks from good ones. Every function is pure; chance comes in as a generator.

What a candidate is worth depends first on how wide its layers are and then on which channels they
keep. So the operators work on whole layers: they are inherited as a whole, widths are shifted
between layers, and inside a layer only channels near the border between kept and dropped change.
"""

from __future__ import annotations

import numpy as np

from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.widths import BoolArray, FloatArray, IntArray


def rank_weights(count: int) -> FloatArray:
    """Return weights for `count` parents, best first, falling with the log of the rank, sum 1."""
    weights = np.log(count + 0.5) - np.log(np.arange(1, count + 1))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def draw_layers(num_parents: int, shape: tuple[int, ...], rng: np.random.Generator) -> IntArray:
    """Crossover, first half: draw for each layer of each child the parent that it comes from.

    Better parents are drawn more often. Drawing before copying lets the search look at the widths
    of many children and make the masks of few.

    Args:
        num_parents: parents, best first.
        shape: children and layers, for instance (P, L).
        rng: the search's generator.

    Returns:
        Index of a parent, of that shape.
    """
    drawn: IntArray = rng.choice(num_parents, shape, p=rank_weights(num_parents))
    return drawn


def inherit_layers(space: SearchSpace, parents: BoolArray, origin: IntArray) -> BoolArray:
    """Crossover, second half: copy whole layers from the parents.

    Args:
        space: gives the layers.
        parents: masks, shape (E, C).
        origin: the parent of each layer of each child, shape (P, L).

    Returns:
        Children, shape (P, C); over budget or under until repaired.
    """
    children = np.empty((len(origin), space.num_channels), dtype=np.bool_)
    for layer, (start, size) in enumerate(zip(space.starts, space.grid.size, strict=True)):
        part = slice(start, start + size)
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
        part = slice(space.starts[layer], space.starts[layer] + space.grid.size[layer])
        kept = masks[row, part]
        value = factor[part] + _LOYALTY * kept + noise * rng.gumbel(size=len(kept))
        best = np.argsort(-value, kind="stable")[: kept.sum()]
        result[row, part] = False
        result[row, part.start + best] = True
    return result


_LOYALTY = 0.5  # half the range of the factor: what a kept channel is ahead of a dropped one


def mix_bits(
    space: SearchSpace, parents: BoolArray, count: int, rng: np.random.Generator, *, rate: float
) -> BoolArray:
    """Uniform crossover of two parents and bit flips, as without any knowledge of layers.

    Args:
        space: gives the number of channels.
        parents: masks, best first, shape (E, C).
        count: children wanted.
        rng: the search's generator.
        rate: share of the bits flipped.
    """
    chosen = rng.choice(len(parents), (2, count), p=rank_weights(len(parents)))
    shape = (count, space.num_channels)
    mixed = np.where(rng.random(shape) < 0.5, parents[chosen[0]], parents[chosen[1]])
    return np.asarray(mixed ^ (rng.random(shape) < rate), dtype=np.bool_)
