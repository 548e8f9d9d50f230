"""Cost of a mask as arithmetic: MACs and parameters of every mask, without building a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""Kept channels of every layer, shape (population, layers)."""


@dataclass(frozen=True)
class LinearSize:
    """Live size of one dimension: ``fixed + Σ_l multiplicity_l · kept_l``.

    Attributes:
        fixed: indices that no mask removes.
        multiplicity: how many indices one channel of each layer stands for, shape (layers,).
    """

    fixed: int
    multiplicity: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Term:
    """``constant`` times the product of the live sizes of some dimensions.

    Attributes:
        module: name of the module to which it belongs.
        constant: the constant.
        sizes: the sizes of the dimensions.
        over: nothing at all where this size is 1.
    """

    module: str
    constant: int
    sizes: tuple[LinearSize, ...]
    over: LinearSize | None = None


class Polynomial:
    """A sum of terms, evaluated for a whole population at once.

    Args:
        terms: the terms.
        num_layers: number of prunable layers.
    """

    def __init__(self, terms: Sequence[Term], num_layers: int) -> None:
        self.modules = [term.module for term in terms]
        sizes: dict[LinearSize, int] = {LinearSize(1, ()): 0}
        width = max((len(term.sizes) for term in terms), default=0)
        self._index = np.zeros((len(terms), width), dtype=np.int64)
        for row, term in enumerate(terms):
            for column, size in enumerate(term.sizes):
                self._index[row, column] = sizes.setdefault(size, len(sizes))
        self._summing = [row for row, term in enumerate(terms) if term.over is not None]
        over = [term.over for term in terms if term.over is not None]
        self._over = [sizes.setdefault(size, len(sizes)) for size in over]
        self._constants = np.array([term.constant for term in terms], dtype=np.int64)
        self._fixed = np.array([size.fixed for size in sizes], dtype=np.int64)
        self._weights = np.zeros((num_layers, len(sizes)), dtype=np.int64)
        for column, size in enumerate(sizes):
            for layer, times in size.multiplicity:
                self._weights[layer, column] = times

    def terms(self, counts: Counts) -> Counts:
        """Every term on its own.

        Args:
            counts: kept channels, shape (population, layers).

        Returns:
            Shape (population, terms).
        """
        live = self._fixed + counts @ self._weights
        values: Counts = self._constants * live[:, self._index].prod(axis=-1)
        values[:, self._summing] *= live[:, self._over] != 1
        return values

    def __call__(self, counts: Counts) -> Counts:
        """The sum.

        Args:
            counts: kept channels, shape (population, layers).

        Returns:
            Shape (population,).
        """
        total: Counts = self.terms(counts).sum(axis=-1)
        return total

    def by_module(self, counts: Counts) -> dict[str, int]:
        """Each module's share, for a single network: ``counts`` of shape (1, layers)."""
        shares: dict[str, int] = {}
        for module, value in zip(self.modules, self.terms(counts)[0], strict=True):
            shares[module] = shares.get(module, 0) + int(value)
        return shares


@dataclass(frozen=True)
class Cost:
    """Exact cost of any mask of one network on its example inputs.

    Attributes:
        macs: multiply-adds of one evaluation of the example inputs (one MAC is one multiply-add:
            half of what ``torch.utils.flop_counter`` reports).
        params: number of parameter entries, tied ones once.
    """

    macs: Polynomial
    params: Polynomial
