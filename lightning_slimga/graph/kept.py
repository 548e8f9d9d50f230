"""Results that are kept without a copy, until somebody writes into their memory."""

from __future__ import annotations

import ctypes
import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Kept:
    """A tensor with the values that it has now; if they are lost, that is noticed.

    Args:
        tensor: the tensor.
        lent: whether its memory stays in use. Whoever lends it calls :meth:`part` before an op
            writes into it; otherwise the values are copied here and now.
    """

    def __init__(self, tensor: Tensor, *, lent: bool) -> None:
        lent = lent and type(tensor) is Tensor and tensor.layout is torch.strided
        self.memory = memory_of(tensor) if lent else 0
        """Where the memory is that it has in common with others; 0 if it has its own."""
        self._tensor = tensor.detach() if lent else tensor.clone()
        self._content = _summed(self._tensor) if self.memory else []

    def part(self) -> None:
        """Take a copy, since somebody is about to write into the memory."""
        if self.intact:
            self._copy()

    @property
    def intact(self) -> bool:
        """Whether it has its values: not all that writes is an op (NumPy, ``resize_(0)``)."""
        if not self.memory:
            return True
        if memory_of(self._tensor) != self.memory:
            return False
        return all(map(torch.equal, _summed(self._tensor), self._content))

    def given(self) -> Tensor:
        """The tensor, for somebody who may write into it; to be asked for once, while intact."""
        alone = _users(self._tensor) == _ALONE and not self._tensor.is_inference()
        if self.memory and not alone:
            self._copy()
        return self._tensor

    def _copy(self) -> None:
        self._tensor, self.memory, self._content = self._tensor.clone(), 0, []


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
    if tensor.layout is not torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a subclass that wraps others has no memory of its own
        return 0


def looked_at(tensor: Tensor) -> npt.NDArray[Any]:
    """The numbers of a contiguous tensor on a CPU, for NumPy, while the tensor lives.

    ``Tensor.numpy`` would forbid for good that its memory is resized, which a program may do.
    """
    memory = (ctypes.c_byte * tensor.nbytes).from_address(tensor.data_ptr())
    kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return np.ctypeslib.as_array(memory).view(kind).reshape(tensor.shape)


def _summed(tensor: Tensor) -> list[Tensor]:
    """What changes when somebody writes into the memory of a tensor, cheaper than a copy of it."""
    words, rest = divmod(tensor.untyped_storage().nbytes(), 8)
    whole = words // _COLUMNS * _COLUMNS
    numbers = _read(tensor, torch.int64, 0, words)
    odd = _read(tensor, torch.uint8, 8 * words, rest)
    return [_column_sums(numbers[:whole]), numbers[whole:].clone(), odd.clone()]


def _column_sums(numbers: Tensor) -> Tensor:
    """Sums that tell an order of the numbers from another."""
    rows = numbers.view(-1, _COLUMNS)
    if numbers.device.type != "cpu" or not numbers.numel():
        return rows.sum(0)
    return torch.from_numpy(np.add.reduce(looked_at(rows), axis=0))  # several times as quick


def _read(tensor: Tensor, dtype: torch.dtype, start: int, count: int) -> Tensor:
    """Numbers in the memory of a tensor, read as another type."""
    numbers = torch.empty(0, dtype=dtype, device=tensor.device)
    return numbers.set_(tensor.untyped_storage(), start, (count,), (1,))


_COLUMNS = 1021  # no width of a network: what changes places comes to stand in another column


def _users(tensor: Tensor) -> float:
    """How many use the memory of a tensor; not a number where this version of torch cannot say."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    memory = tensor.untyped_storage()  # the same object for all who ask, in later versions
    return math.nan if count is None else count(memory._cdata) + sys.getrefcount(memory)


_ALONE = _users(torch.empty(1))
"""What is said of memory that one tensor uses."""
