"""Fit a population under its budgets: as wide as possible, in each candidate's own proportions.

The cost of a network depends on its layer widths alone, so the work is done on widths, shape
(P, L), and channels are touched once at the end. Widths follow a path: all layers scaled by a
common factor t. The largest t that fits is found by multi-section, a few cost calls for the whole
population; what rounding leaves over is then filled, among the layers that still can grow, until
no single step of any layer fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightning_slimga.search.widths import BoolArray, FloatArray, IntArray, WidthGrid

Fits = Callable[[IntArray, IntArray], BoolArray]
"""Says which counts, shape (R, L), of the candidates with these indices, shape (R,), fit."""

_EVEN = np.arange(1, 17) / 17
_NEAR = np.geomspace(1e-5, 0.6, 16)
# Where each cost call looks between the t known to fit and the t known not to. The first climb
# starts anywhere and resolves one channel; later ones usually end close to where they start.
_FIRST = (_EVEN, _EVEN, _EVEN, _EVEN)
_LATER = (_NEAR, _EVEN)


@dataclass
class _Fitting:
    """The rows of a population while they grow along their paths."""

    grid: WidthGrid
    fits: Fits
    wanted: FloatArray  # widths at t = 1, (P, L)
    levels: IntArray  # current feasible levels, (P, L)
    low: FloatArray  # log t known to fit, (P,)
    high: FloatArray  # log t known not to fit, (P,)

    def path(self, rows: IntArray, log_t: FloatArray, growing: BoolArray) -> IntArray:
        """Levels at each log t (R, S) of the rows, only `growing` layers (R, L) move: (R, S, L)."""
        widths = self.wanted[rows][:, None, :] * np.exp(log_t)[..., None]
        current = self.levels[rows][:, None, :]
        moved = np.maximum(current, self.grid.levels(widths))
        return np.where(growing[:, None, :], moved, current)

    def climb(self, rows: IntArray, growing: BoolArray, looks: tuple[FloatArray, ...]) -> None:
        """Move the rows as far along their paths as the budgets allow."""
        low, high = self.low[rows], self.high[rows]
        for fractions in looks:
            log_t = low[:, None] + (high - low)[:, None] * fractions
            trial = self.path(rows, log_t, growing)
            counts = self.grid.counts(trial).reshape(-1, trial.shape[-1])
            passed = self.fits(counts, np.repeat(rows, len(fractions)))
            index = passed.reshape(log_t.shape).sum(axis=1, keepdims=True)
            edges = np.concatenate([low[:, None], log_t, high[:, None]], axis=1)
            low = np.take_along_axis(edges, index, axis=1)[:, 0]
            high = np.take_along_axis(edges, index + 1, axis=1)[:, 0]
        self.levels[rows] = self.path(rows, low[:, None], growing)[:, 0]
        self.low[rows] = low

    def can_step(self, rows: IntArray, candidates: BoolArray) -> BoolArray:
        """Which of the `candidates` (R, L) can grow by one step, alone."""
        result = candidates & (self.levels[rows] < self.grid.top)
        at, layer = np.nonzero(result)
        if len(at):
            trial = self.levels[rows[at]]
            trial[np.arange(len(at)), layer] += 1
            result[at, layer] = self.fits(self.grid.counts(trial), rows[at])
        return result


def fit_counts(widths: FloatArray, grid: WidthGrid, fits: Fits) -> IntArray:
    """Return the widest legal counts that fit, in the proportions of `widths`.

    Legal widths that fit and cannot grow come back unchanged. Where not even the narrowest
    network fits, it is the result.

    Args:
        widths: wanted channels per layer, shape (P, L); the result keeps their proportions.
        grid: the legal widths.
        fits: the test of all budgets.

    Returns:
        Counts, shape (P, L): feasible, and no layer can grow by one step.
    """
    wanted = np.clip(widths.astype(np.float64), grid.lowest, grid.size)
    own = grid.levels(wanted)
    rows = np.arange(len(wanted))
    feasible = fits(grid.counts(own), rows)
    slack = 1e-9  # keeps the ends of the path strictly outside after rounding
    shrink = np.log((grid.lowest / wanted).min(axis=1)) - slack
    grow = np.log((grid.size / wanted).max(axis=1)) + slack
    work = _Fitting(
        grid=grid,
        fits=fits,
        wanted=wanted,
        levels=np.where(feasible[:, None], own, 0),
        low=np.where(feasible, 0.0, shrink),
        high=np.where(feasible, grow, 0.0),
    )
    growing = np.ones_like(own, dtype=np.bool_)
    work.climb(rows, growing, _FIRST)
    work.high[:] = grow
    _fill(work, rows, growing)
    return grid.counts(work.levels)


def _fill(work: _Fitting, rows: IntArray, growing: BoolArray) -> None:
    """Grow what still can. A layer that cannot step once never can: costs rise with every width."""
    while True:
        growing = work.can_step(rows, growing)
        alive = growing.any(axis=1)
        rows, growing = rows[alive], growing[alive]
        if not len(rows):
            return
        before = work.levels[rows]
        work.climb(rows, growing, _LATER)
        # Layers that reach their next width at the same t block each other: one goes alone.
        stuck = (work.levels[rows] == before).all(axis=1)
        served = work.grid.counts(before) / work.wanted[rows]
        neediest = np.where(growing, served, np.inf).argmin(axis=1)
        work.levels[rows[stuck], neediest[stuck]] += 1


def resize(masks: BoolArray, counts: IntArray, ids: IntArray, factor: FloatArray) -> BoolArray:
    """Drop the lowest or add the highest channels of each layer until it keeps `counts`.

    In each layer channels are only dropped or only added.

    Args:
        masks: True = keep, shape (P, C).
        counts: channels to keep per layer, shape (P, L).
        ids: layer of each channel, ascending, shape (C,).
        factor: value of each channel, shape (C,).
    """
    order = np.lexsort((-factor, ids))  # by layer, best channel first; ties by position
    starts = np.searchsorted(ids, np.arange(counts.shape[1]))
    kept = masks[:, order]
    running = np.cumsum(kept, axis=1, dtype=np.int32)
    ends = running[:, np.append(starts[1:], len(ids)) - 1]
    before = np.concatenate([np.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
    target = counts.astype(np.int32)
    missing = target - (ends - before)
    position = (np.arange(len(ids)) - starts[ids] + 1).astype(np.int32)
    # Among the kept of its layer a channel is number `running - before`, among the dropped
    # `position - running + before`, counted from the best.
    stays = running <= (before + target)[:, ids]
    returns = position - running <= (missing - before)[:, ids]
    result = np.empty_like(masks)
    result[:, order] = np.where(kept, stays, returns)
    return result
