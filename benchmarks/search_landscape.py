"""Synthetic networks for the search: accuracy as a known function of what a mask keeps."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from lightning_slimga.search import Budget, SearchSpace

Masks = NDArray[np.bool_]


class Landscape:
    """A chain of convolutions whose accuracy after a cut is 0.1 + 0.82 exp(-damage).

    Each layer adds s (1 - x)^p to the damage, x being the share of its importance that is kept, and
    neighbouring layers add the geometric mean of theirs. Sensitivities s (log-normal), shapes p and
    importances are hidden from the search; the scores it sees correlate 0.5 with the importances
    and their scale differs between layers for no reason. Sensitivities are scaled so that the
    uniform cut reaches 0.68, as it does on a small dense Fashion-MNIST network. Each mask carries
    a fixed error with a standard deviation of 0.6 points, as 2,000 validation images have.

    Args:
        seed: chooses the network.
        depth: layers, a multiple of 3 (three stages, each twice as wide as the one before).
        limit: share of the MACs that the budget leaves.
    """

    def __init__(self, seed: int, depth: int, limit: float = 0.35) -> None:
        rng = np.random.default_rng(seed)
        size = np.repeat([24, 48, 96], depth // 3)
        pixels = np.repeat([196, 49, 16], depth // 3)
        ends = np.cumsum(size)
        layer = np.repeat(np.arange(depth), size)
        shown = rng.standard_normal(len(layer))
        hidden = 0.5 * shown + np.sqrt(0.75) * rng.standard_normal(len(layer))
        scores = np.exp(0.6 * shown) * rng.lognormal(0, 0.5, depth)[layer]
        self._starts = ends - size
        importance = np.exp(hidden)
        self._importance = importance / np.add.reduceat(importance, self._starts)[layer]
        self._sensitivity = rng.lognormal(0, 1, depth)
        self._shape = rng.uniform(1.2, 3, depth)
        self._salt = seed.to_bytes(4, "big")

        def macs(counts: NDArray[np.int64]) -> NDArray[np.int64]:
            inputs = np.concatenate([np.ones_like(counts[:, :1]), counts[:, :-1]], axis=1)
            return (9 * pixels * inputs * counts).sum(axis=1)

        layers = [
            (f"layer{i}", slice(int(end - width), int(end)))
            for i, (end, width) in enumerate(zip(ends, size, strict=True))
        ]
        budget = Budget("macs", limit * float(macs(size[None])[0]), macs)
        self.space = SearchSpace(layers, scores, [budget])
        uniform = self.space.repair(np.ones((1, len(layer)), dtype=np.bool_), scores)
        self._sensitivity *= -np.log((0.68 - 0.1) / 0.82) / self._damage(uniform)[0]

    def accuracy(self, masks: Masks) -> NDArray[np.float64]:
        """Return the accuracy of masks, shape (P, C), without error."""
        return np.asarray(0.1 + 0.82 * np.exp(-self._damage(masks)), dtype=np.float64)

    def measure(self, mask: Masks) -> float:
        """Return the accuracy of one mask, shape (C,), with its error."""
        digest = hashlib.blake2b(np.packbits(mask).tobytes() + self._salt, digest_size=8).digest()
        error = np.random.default_rng(int.from_bytes(digest, "big")).standard_normal()
        return float(self.accuracy(mask[None])[0] + 0.006 * error)

    def _damage(self, masks: Masks) -> NDArray[np.float64]:
        kept = np.minimum(np.add.reduceat(masks * self._importance, self._starts, axis=1), 1)
        own = self._sensitivity * (1 - kept) ** self._shape
        pairs = np.sqrt(own[:, 1:] * own[:, :-1])
        return np.asarray(own.sum(axis=1) + 0.5 * pairs.sum(axis=1), dtype=np.float64)
