"""What may be searched: layers, scores and budgets, and the masks that meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightning_slimga.search.repair import fit_counts, resize
from lightning_slimga.search.widths import BoolArray, FloatArray, IntArray, WidthGrid


@dataclass(frozen=True)
class Budget:
    """An upper limit on what a network may cost.

    Attributes:
        name: what is limited, for messages ("macs").
        limit: the largest allowed cost, in the unit of `cost`.
        cost: maps kept channels per layer, shape (P, L), to costs, shape (P,). It may never fall
            when a layer gets wider; repair relies on it.

    >>> import numpy as np
    >>> Budget("channels", 4, lambda counts: counts.sum(axis=1)).cost_of(np.array([2, 3]))
    5.0
    """

    name: str
    limit: float
    cost: Callable[[IntArray], IntArray | FloatArray] = field(repr=False)

    def cost_of(self, counts: IntArray) -> float:
        """Return the cost of one network with these kept channels per layer, shape (L,)."""
        return float(np.asarray(self.cost(counts[None]))[0])


def meets(
    budgets: Iterable[Budget], counts: IntArray, share: FloatArray | float = 1.0
) -> BoolArray:
    """Return which counts, shape (P, L), meet all budgets, their limits scaled by `share`."""
    result = np.ones(len(counts), dtype=np.bool_)
    for budget in budgets:
        result &= np.asarray(budget.cost(counts)) <= budget.limit * share
    return result


class SearchSpace:
    """All masks over the removable channels, and the repair that brings any of them under budget.

    Args:
        layers: (name, slice) of each layer; the slices follow each other and cover the mask.
        scores: importance of each channel, for instance |γ|; finite, not negative, shape (C,).
            The seeds rank by them.
        budgets: limits that a mask has to meet, all of them; empty means no limit.
        min_channels: fewest channels that a layer keeps, at least 1; a smaller one stays whole.
        round_to: a layer keeps a multiple of this many channels, at least 1, or all.
        effects: how much each channel does to what comes after it, in the form of the scores. The
            evaluation factor starts from them, and they give seeds of their own. None: the scores.

    Attributes:
        slices: the channels of each layer in a mask.
        layer_ids: the layer of each channel, shape (C,).
        grid: the widths that each layer may have.

    Raises:
        ValueError: an argument does not fit, or a budget cannot be met by any mask.

    >>> import numpy as np
    >>> half = Budget("channels", 3, lambda counts: counts.sum(axis=1))
    >>> space = SearchSpace([("a", slice(0, 2)), ("b", slice(2, 6))], np.arange(6.0), [half])
    >>> space
    SearchSpace(2 layers, 6 channels, channels <= 3)
    >>> space.repair(np.ones((1, 6), dtype=bool), space.scores).astype(int)
    array([[0, 1, 0, 0, 1, 1]])
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, slice]],
        scores: FloatArray,
        budgets: Sequence[Budget],
        *,
        min_channels: int = 1,
        round_to: int = 1,
        effects: FloatArray | None = None,
    ) -> None:
        size = _sizes(layers)
        self.names = tuple(name for name, _ in layers)
        self.slices = tuple(part for _, part in layers)
        self.scores = _checked("scores", scores, int(size.sum()))
        self.effects = self.scores
        if effects is not None:
            self.effects = _checked("effects", effects, int(size.sum()))
        self.budgets = tuple(budgets)
        for name, value in (("min_channels", min_channels), ("round_to", round_to)):
            if value < 1:
                raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}.")
        self.grid = WidthGrid.build(size, min_channels, round_to)
        self.starts: IntArray = np.concatenate([[0], np.cumsum(size)[:-1]]).astype(np.int64)
        self.layer_ids: IntArray = np.repeat(np.arange(len(size)), size)
        self._refuse_impossible()

    def __repr__(self) -> str:
        limits = "".join(f", {one.name} <= {one.limit:g}" for one in self.budgets)
        return f"SearchSpace({self.num_layers} layers, {self.num_channels} channels{limits})"

    @property
    def num_channels(self) -> int:
        """Bits of a mask."""
        return len(self.layer_ids)

    @property
    def num_layers(self) -> int:
        """Layers of the mask."""
        return len(self.names)

    @property
    def already_met(self) -> bool:
        """Whether the full network meets all budgets, so that there is nothing to search."""
        return bool(self.fits(self.grid.size[None])[0])

    def counts(self, masks: BoolArray) -> IntArray:
        """Return the kept channels per layer, shape (P, L), of masks of shape (P, C)."""
        return np.add.reduceat(self._checked(masks), self.starts, axis=1, dtype=np.int64)

    def costs(self, masks: BoolArray) -> dict[str, FloatArray]:
        """Return the cost of each mask by budget name, each of shape (P,)."""
        counts = self.counts(masks)
        return {b.name: np.asarray(b.cost(counts), dtype=np.float64) for b in self.budgets}

    def fits(self, counts: IntArray, share: FloatArray | float = 1.0) -> BoolArray:
        """Return which counts, shape (P, L), meet all budgets, their limits scaled by `share`."""
        return meets(self.budgets, counts, share)

    def is_legal(self, counts: IntArray) -> BoolArray:
        """Return which counts, shape (P, L), are widths that every layer may have."""
        return self.grid.is_legal(counts)

    def feasible(self, masks: BoolArray) -> BoolArray:
        """Return which masks, shape (P, C), meet all budgets and only have legal widths."""
        counts = self.counts(masks)
        result: BoolArray = self.is_legal(counts) & self.fits(counts)
        return result

    def repair(
        self,
        masks: BoolArray,
        factor: FloatArray,
        *,
        widths: FloatArray | None = None,
        share: FloatArray | None = None,
    ) -> BoolArray:
        """Return the nearest masks that meet all budgets and are as large as possible.

        Layers keep the proportions of the candidate: which layers matter is what the search finds
        out, so repair does not decide it. Inside a layer the channels with the lowest factor go,
        those with the highest come back. No layer of the result can grow by one step, and a
        repaired mask repairs to itself.

        Args:
            masks: True = keep, shape (P, C).
            factor: evaluation factor of each channel, shape (C,).
            widths: wanted channels per layer, shape (P, L); default is what the masks keep.
            share: scales every limit, per candidate, shape (P,); default 1. Where the scaled
                limit is out of reach the smallest network is the result.
        """
        masks = self._checked(masks)
        wanted = self.counts(masks) if widths is None else widths
        scale = np.ones(len(masks)) if share is None else share

        def fits(counts: IntArray, rows: IntArray) -> BoolArray:
            return self.fits(counts, scale[rows])

        counts = fit_counts(np.asarray(wanted, dtype=np.float64), self.grid, fits)
        return resize(masks, counts, self.layer_ids, factor)

    def _checked(self, masks: BoolArray) -> BoolArray:
        masks = np.asarray(masks)
        if masks.ndim != 2 or masks.shape[1] != self.num_channels or masks.dtype != np.bool_:
            raise ValueError(
                f"Expected argument `masks` to be a boolean array of shape (population, "
                f"{self.num_channels}), but got {masks.dtype} of shape {masks.shape}."
            )
        return masks

    def _refuse_impossible(self) -> None:
        for budget in self.budgets:
            reachable = budget.cost_of(self.grid.lowest)
            if reachable > budget.limit:
                raise ValueError(
                    f"Expected budget `{budget.name}` to be reachable, but its limit is "
                    f"{budget.limit:g} and the smallest network that `min_channels` and "
                    f"`round_to` allow has {reachable:g}. Raise the limit, or lower them."
                )


def _sizes(layers: Sequence[tuple[str, slice]]) -> IntArray:
    if not layers:
        raise ValueError("Expected argument `layers` to name at least one layer, but got none.")
    position = 0
    for name, part in layers:
        if part.start != position or part.stop <= position or part.step not in (None, 1):
            raise ValueError(
                f"Expected argument `layers` to cover the mask without gaps, with layer `{name}` "
                f"starting at {position}, but got {part}."
            )
        position = part.stop
    return np.array([part.stop - part.start for _, part in layers], dtype=np.int64)


def _checked(argument: str, values: FloatArray, num_channels: int) -> FloatArray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (num_channels,):
        raise ValueError(
            f"Expected argument `{argument}` to have shape ({num_channels},), one per channel of "
            f"the layers, but got {values.shape}."
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"Expected argument `{argument}` to be finite and not negative, but got "
            f"{int((~np.isfinite(values) | (values < 0)).sum())} other values. "
            "Has training diverged?"
        )
    return values
