"""The evaluation factor: one changing value per channel that says which to drop and which to add.

The patent names a "dynamically adjustable evaluation factor" and publishes no formula. This one is
ours, an estimation-of-distribution step:

    f_i(0)   = (r_i + R_i) / 2
    f_i(t+1) = f_i(t) + rate · (e_i(t) − p_i(t))

r_i and R_i, in (0, 1], are the rank of the effect of channel i (|γ|, or what the search space was
given beside it) within its layer and among all channels, divided by the number of channels ranked;
e_i is the share of the elite that keeps channel i, p_i the share of all candidates at hand that do.
A channel rises when the good candidates keep it more often than the others do. Comparing with p_i
matters: e_i alone would reward whatever the factor itself has put into every candidate.
"""

from __future__ import annotations

import numpy as np

from lightning_slimga.search.space import SearchSpace
from lightning_slimga.search.widths import BoolArray, FloatArray, IntArray


class EvaluationFactor:
    """The factor of every channel.

    Args:
        space: gives the layers and effects.
        rate: how fast the factor follows the elite, not negative; 0 keeps the start values.

    Attributes:
        values: the factor of each channel, shape (C,).
    """

    def __init__(self, space: SearchSpace, *, rate: float) -> None:
        within = _ranks(space.effects, space.layer_ids)
        overall = _ranks(space.effects, np.zeros_like(space.layer_ids))
        self.rate = rate
        self.values: FloatArray = (within + overall) / 2

    def __repr__(self) -> str:
        return f"EvaluationFactor({len(self.values)} channels, rate {self.rate:g})"

    def follow(self, elite: BoolArray, everyone: BoolArray) -> None:
        """Take one step toward what the elite keeps.

        Args:
            elite: the best masks, shape (E, C).
            everyone: the masks they were chosen from, shape (P, C).
        """
        self.values = self.values + self.rate * (elite.mean(axis=0) - everyone.mean(axis=0))


def _ranks(scores: FloatArray, groups: IntArray) -> FloatArray:
    """Rank within each group (ascending ids), divided by its size: (0, 1], the best 1."""
    order = np.lexsort((scores, groups))
    size = np.bincount(groups)
    start = np.cumsum(size) - size
    ranks = np.empty(len(scores), dtype=np.float64)
    ranks[order] = (np.arange(len(scores)) - start[groups] + 1) / size[groups]
    return ranks
