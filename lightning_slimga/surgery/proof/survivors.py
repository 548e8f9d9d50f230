"""Survivors: which indices of any dimension of a network a mask leaves."""

from __future__ import annotations

import numpy as np

from lightning_slimga.graph.labels import LabelArray
from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.surgery.masking import Mask


class Survivors:
    """A mask, seen from the labels of dimensions.

    Args:
        graph: the channels.
        keep: the mask.
    """

    def __init__(self, graph: ChannelGraph, keep: Mask) -> None:
        gone: Mask = np.append(~keep, False)  # at its end: what has no bit
        self._gone_by_label = gone[graph.bit_of_label]
        self._known: dict[int, tuple[LabelArray, Mask | None, int]] = {}

    def live(self, labels: LabelArray) -> Mask | None:
        """Which indices of a dimension stay, shape (size,); None where all do."""
        return self._of(labels)[1]

    def removed(self, labels: LabelArray) -> int:
        """How many indices of a dimension go."""
        return self._of(labels)[2]

    def _of(self, labels: LabelArray) -> tuple[LabelArray, Mask | None, int]:
        known = self._known.get(id(labels))
        if known is None:
            gone = self._gone_by_label[labels]  # NOTHING is -1: the last entry, which stays
            removed = int(np.count_nonzero(gone))
            # The labels are held, so that their number stays theirs.
            known = self._known[id(labels)] = labels, ~gone if removed else None, removed
        return known
