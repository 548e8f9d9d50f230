"""Masks that anybody would try before a genetic search, written without the search package."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_slimga import ChannelSurgery

Counts = NDArray[np.int64]
BISECTIONS = 40


def threshold(surgery: ChannelSurgery, limit: float) -> Tensor:
    """Return the mask of one global threshold on |γ|, as network slimming sets it.

    Args:
        surgery: The network.
        limit: MACs that the mask may cost at most.
    """
    return _highest(surgery, surgery.scores(), limit)


def per_mac(surgery: ChannelSurgery, limit: float) -> Tensor:
    """Return the mask of one threshold on |γ| over the MACs that removing the channel saves.

    Args:
        surgery: The network; the savings are those of its full size.
        limit: MACs that the mask may cost at most.
    """
    sizes = layer_sizes(surgery)
    saved = surgery.cost.macs(sizes[None]) - surgery.cost.macs(
        sizes - np.eye(len(sizes), dtype=int)
    )
    return _highest(surgery, surgery.scores() / np.repeat(saved, sizes), limit)


def _highest(surgery: ChannelSurgery, ranking: NDArray[np.float64], limit: float) -> Tensor:
    rank = np.argsort(np.argsort(-ranking, kind="stable"))

    def counts(share: float) -> Counts:
        above = rank < share * len(ranking)
        return np.array([np.count_nonzero(above[at]) for at in slices(surgery)])

    return widest(surgery, counts, limit)


def uniform(surgery: ChannelSurgery, limit: float) -> Tensor:
    """Return the mask that keeps the same share of every layer, the largest |γ| first."""
    sizes = layer_sizes(surgery)
    return widest(surgery, lambda share: np.floor(share * sizes), limit)


def random_widths(
    surgery: ChannelSurgery, limit: float, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield masks of random width in every layer, the largest |γ| first, all just within limit."""
    sizes = layer_sizes(surgery)
    while True:
        draw = rng.uniform(size=len(sizes))
        yield widest(
            surgery, lambda share, draw=draw: np.floor(sizes * draw ** (1 / share - 1)), limit
        )


def widest(
    surgery: ChannelSurgery, counts: Callable[[float], NDArray[np.generic]], limit: float
) -> Tensor:
    """Return the mask of the largest share in (0, 1] that costs at most `limit` MACs.

    Args:
        surgery: The network.
        counts: Kept channels of each layer for a share; never falls as the share grows.
        limit: MACs for one sample.
    """

    def kept(share: float) -> Counts:
        return np.clip(counts(share), 1, layer_sizes(surgery)).astype(np.int64)

    low, high = 1e-6, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = int(surgery.cost.macs(kept(middle)[None])[0]) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return top_channels(surgery, kept(low))


def top_channels(surgery: ChannelSurgery, counts: Counts) -> Tensor:
    """Return the mask that keeps the given number of channels of each layer, largest |γ| first."""
    scores = surgery.scores()
    mask = np.zeros(len(scores), dtype=bool)
    for at, kept in zip(slices(surgery), counts, strict=True):
        mask[at.start + np.argsort(-scores[at], kind="stable")[:kept]] = True
    return torch.from_numpy(mask)


def slices(surgery: ChannelSurgery) -> list[slice]:
    """Return the bits of each layer."""
    return [layer.slice for layer in surgery.layers]


def layer_sizes(surgery: ChannelSurgery) -> Counts:
    """Return the channels of each layer, full size."""
    return np.array([at.stop - at.start for at in slices(surgery)])
