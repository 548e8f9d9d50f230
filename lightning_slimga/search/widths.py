"""The legal widths of each layer, as integer levels.

A layer of `size` channels may keep `lowest`, `lowest + step`, ... or all of its channels. Counting
in levels instead of channels makes "one step wider" the same operation everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def fewest_channels(size: IntArray, min_channels: int, round_to: int) -> IntArray:
    """Return the smallest legal width of layers of these sizes, of the same shape.

    Args:
        size: channels of each layer.
        min_channels: fewest channels that a layer keeps, at least 1; a smaller one stays whole.
        round_to: a layer keeps a multiple of this, at least 1, or all of its channels.
    """
    least: IntArray = np.minimum(-(-min_channels // round_to) * round_to, size)
    return least


@dataclass(frozen=True)
class WidthGrid:
    """Legal widths of all layers.

    Attributes:
        size: channels of each layer, shape (L,).
        lowest: smallest legal width of each layer, shape (L,), in 1..size.
        step: distance between neighbouring legal widths.
    """

    size: IntArray
    lowest: IntArray
    step: int

    @classmethod
    def build(cls, size: IntArray, min_channels: int, round_to: int) -> WidthGrid:
        """Build the grid of what `fewest_channels` describes, the full width always legal."""
        return cls(size, fewest_channels(size, min_channels, round_to), round_to)

    @property
    def top(self) -> IntArray:
        """Level of the full width of each layer, shape (L,)."""
        top: IntArray = -(-(self.size - self.lowest) // self.step)
        return top

    def counts(self, levels: IntArray) -> IntArray:
        """Return the kept channels at `levels`, shape (..., L)."""
        counts: IntArray = np.minimum(self.lowest + levels * self.step, self.size)
        return counts

    def levels(self, widths: IntArray | FloatArray) -> IntArray:
        """Return the highest levels not wider than `widths` (at least level 0), shape (..., L)."""
        below = np.floor((widths - self.lowest) / self.step).astype(np.int64)
        inside = np.clip(below, 0, self.top)
        return np.asarray(np.where(widths >= self.size, self.top, inside), dtype=np.int64)

    def is_legal(self, counts: IntArray) -> BoolArray:
        """Return which counts, shape (..., L), are widths that every layer may have, (...)."""
        result: BoolArray = (self.counts(self.levels(counts)) == counts).all(axis=-1)
        return result
