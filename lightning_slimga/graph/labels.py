"""Labels: one integer per index of a tensor dimension, tied by union-find, frozen with a reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LabelArray = npt.NDArray[np.int64]
"""Labels of one tensor dimension, shape (size,); ``NOTHING`` where an index has no label."""

DimLabels = LabelArray | None
"""Labels of one dimension, or None where no index of it has any."""

Labels = list[DimLabels]
"""Labels of a tensor, one entry per dimension."""

NOTHING = -1

_FEW = 4096
_ALIVE = np.iinfo(np.int64).max  # stands for "frozen for no reason"


def _own_parents(capacity: int) -> LabelArray:
    """Every label its own parent; the last entry is that of ``NOTHING``, which indexes it."""
    parents = np.arange(capacity, dtype=np.int64)
    parents[NOTHING] = NOTHING
    return parents


def _equal(a: LabelArray, b: LabelArray) -> bool:
    """Whether both hold the same; of few numbers, as most tensors have, bytes tell it quicker."""
    return a.tobytes() == b.tobytes() if len(a) < _FEW else bool((a == b).all())


class LabelStore:
    """All labels of one analysis: which are the same channel, and which can never go.

    Ties are made at once for whole arrays (parents hook onto the smaller root until nothing
    changes), so the cost is linear in the number of indices and no Python loop runs over channels.
    """

    def __init__(self) -> None:
        self._parent = _own_parents(1024)
        self._reason = np.full(1024, _ALIVE, dtype=np.int64)  # of each class, at its root
        self._count = 0
        self.reasons: list[str] = []
        self._reason_ids: dict[str, int] = {}
        self._tied: dict[tuple[int, int], tuple[LabelArray, LabelArray]] = {}

    def __len__(self) -> int:
        return self._count

    def fresh(self, size: int) -> LabelArray:
        """Make ``size`` labels that nothing is tied to yet."""
        start, self._count = self._count, self._count + size
        if self._count >= len(self._parent):
            capacity = max(self._count + 1, 2 * len(self._parent))
            parent = _own_parents(capacity)
            parent[: len(self._parent) - 1] = self._parent[:-1]
            self._parent = parent
            grown = np.full(capacity, _ALIVE, dtype=np.int64)
            grown[: len(self._reason)] = self._reason
            self._reason = grown
        return np.arange(start, self._count, dtype=np.int64)

    def find(self, labels: LabelArray) -> LabelArray:
        """Representative of each label's class; ``NOTHING`` stays ``NOTHING``."""
        roots: LabelArray = self._parent[labels]
        above = self._parent[roots]
        if _equal(above, roots):
            return roots
        while not _equal(above, roots):
            roots, above = above, self._parent[above]
        self._parent[labels] = roots
        return roots

    def tie(self, a: LabelArray, b: LabelArray, why: str) -> None:
        """Make ``a[i]`` and ``b[i]`` the same channel; a label that meets nothing is frozen.

        Args:
            a: labels, shape (n,).
            b: labels, shape (n,).
            why: the reason to give where one side has no label.
        """
        if a is b or (id(a), id(b)) in self._tied:  # every further pass ties the same again
            return
        self._tied[id(a), id(b)] = a, b  # held, so that their numbers stay theirs
        a, b = self.find(a), self.find(b)
        if _equal(a, b):
            return
        low, high = np.minimum(a, b), np.maximum(a, b)
        if low.min() < 0:
            met = low >= 0
            self.freeze(high[~met], why)
            low, high = low[met], high[met]
        reasons = self._reason[low], self._reason[high]
        self._hook(low, high)
        if not _equal(*reasons):
            roots = self.find(low)
            for some in reasons:
                np.minimum.at(self._reason, roots, some)

    def _hook(self, low: LabelArray, high: LabelArray) -> None:
        """Make one class of each pair of roots, of which the first is the smaller one."""
        if (high[1:] > high[:-1]).all():  # each root hooks once: no one gets in another's way
            self._parent[high] = low
            return
        while (differ := low != high).any():
            low, high = low[differ], high[differ]
            np.minimum.at(self._parent, high, low)
            a, b = self.find(low), self.find(high)
            low, high = np.minimum(a, b), np.maximum(a, b)

    def tie_rows(self, labels: LabelArray) -> LabelArray:
        """Tie the rows of a matrix of labels together.

        Args:
            labels: shape (rows, columns).

        Returns:
            The first row, shape (columns,), which now stands for all of them.
        """
        first: LabelArray = labels[0]
        if len(labels) > 1:
            others = labels[1:]
            self.tie(
                np.broadcast_to(first, others.shape).ravel(),
                others.ravel(),
                "meets a part without channels",
            )
        return first

    def freeze(self, labels: DimLabels, why: str) -> None:
        """Never remove these labels' classes; the first reason given to a class is reported."""
        if labels is None or not (roots := self.find(labels[labels >= 0])).size:
            return
        number = self._reason_ids.setdefault(why, len(self.reasons))
        if number == len(self.reasons):
            self.reasons.append(why)
        self._reason[roots] = np.minimum(self._reason[roots], number)

    def freeze_all(self, labels: Sequence[DimLabels], why: str) -> None:
        """Freeze every dimension of a tensor."""
        for dim in labels:
            self.freeze(dim, why)

    def is_frozen(self, labels: LabelArray) -> bool:
        """Whether none of these labels can go."""
        roots = self.find(labels[labels >= 0])
        return bool((self._reason[roots] != _ALIVE).all())

    def roots(self) -> LabelArray:
        """Representative of every label's class, shape (number of labels,)."""
        return self.find(np.arange(self._count, dtype=np.int64))

    def frozen_reasons(self, roots: LabelArray) -> npt.NDArray[np.int64]:
        """For every label the number of the first reason its class was frozen for, or -1.

        Args:
            roots: the labels' :meth:`roots`.

        Returns:
            Indices into ``reasons``, shape (number of labels,).
        """
        reasons = self._reason[roots]
        reasons[reasons == _ALIVE] = NOTHING
        return reasons
