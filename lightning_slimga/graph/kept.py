"""Results that are kept without a copy, until somebody writes into their memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor


class Kept:
    """A tensor with the values that it has now, whatever becomes of it.

    Args:
        tensor: the tensor.
        lent: whether its memory stays in use. Whoever lends it calls :meth:`part` before anything
            writes into it; otherwise the values are copied here and now.
    """

    def __init__(self, tensor: Tensor, *, lent: bool) -> None:
        lent = lent and type(tensor) is Tensor and tensor.layout is torch.strided
        self.memory = memory_of(tensor) if lent else 0
        """Where the memory is that it has in common with others; 0 if it has its own."""
        self._size = tensor.untyped_storage().nbytes() if lent else 0
        self._tensor = tensor.detach() if lent else tensor.clone()

    def part(self) -> None:
        """Take a copy, since somebody is about to write into the memory."""
        if self.intact:
            self._tensor, self.memory = self._tensor.clone(), 0

    @property
    def intact(self) -> bool:
        """Whether nobody has taken the memory away, as ``storage.resize_(0)`` does."""
        return not self.memory or self._tensor.untyped_storage().nbytes() == self._size

    def given(self) -> Tensor:
        """The tensor, for somebody who may write into it; to be asked for once, while intact."""
        alone = _users(self._tensor) == _ALONE and not self._tensor.is_inference()
        if self.memory and not alone:
            self.part()
        return self._tensor


class Loans:
    """Which memory is lent to which kept tensors."""

    def __init__(self) -> None:
        self._lent: defaultdict[int, WeakSet[Kept]] = defaultdict(WeakSet)

    def add(self, kept: Kept) -> Kept:
        """Remember a kept tensor, if it has its memory from others."""
        if kept.memory:
            self._lent[kept.memory].add(kept)
        return kept

    def settle(self, written: Iterable[Any]) -> None:
        """Let everybody part who has lent the memory of arguments that an op writes into.

        Args:
            written: the arguments: tensors, lists of tensors, or others.
        """
        for value in written if self._lent else ():
            if isinstance(value, Tensor):
                for kept in self._lent.pop(memory_of(value), ()):
                    kept.part()
            elif isinstance(value, (list, tuple)):
                self.settle(value)


def memory_of(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 if it has none that others could have in common."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _users(tensor: Tensor) -> float:
    """How many use the memory of a tensor; not a number where this version of torch cannot say."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return math.nan if count is None else count(tensor.untyped_storage()._cdata)


_ALONE = _users(torch.empty(1))
"""What torch says of memory that one tensor uses."""
