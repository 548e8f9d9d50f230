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
    def build(cls, size: IntArray, min_channels: IntArray, round_to: int) -> WidthGrid:
        """Build the grid of multiples of `round_to`, with the full width always legal.

        A layer smaller than `round_to` has no multiple below its size, so it stays whole.

        Args:
            size: channels of each layer, shape (L,).
            min_channels: fewest channels each layer may keep, shape (L,); clipped to the size.
            round_to: widths are multiples of this or the full width.
        """
        multiples = -(-min_channels // round_to) * round_to
        return cls(size=size, lowest=np.minimum(multiples, size), step=round_to)

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
