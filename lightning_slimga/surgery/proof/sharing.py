"""Sharing: what the masked and the shrunk network both compute is computed once.

A contraction of which channels are gone is, in either network, the contraction of what lives. So
the network that runs second takes over the result of the first, if it would compute it from the
very same numbers. Wherever they differ in a single bit it computes, and the difference shows at the
output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_slimga.graph.kept import looked_at, memory_of
from lightning_slimga.graph.replay import Replay
from lightning_slimga.graph.trace import described, tensors_in

_MANY = 2**12  # numbers from which numpy, which compares several at a time, is quicker than torch
_NUMPY = (torch.float32, torch.float64)


class Sharing(Replay):
    """Contractions of one network, for another one that runs them on the same numbers.

    Args:
        fixed: tensors that no forward pass writes into: weights and inputs. Of these the same
            memory is the same numbers; other memory may hold others by now.
    """

    lends = False  # contractions alone are run here

    def __init__(self, fixed: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._fixed = {memory_of(tensor) for tensor in fixed}

    def noted(self, args: tuple[Any, ...]) -> Any:
        """The arguments themselves, and how often they had been written into."""
        tensors = [t.clone() if t.is_inference() else t for t in tensors_in(args)]
        return described(args), tensors, [t._version for t in tensors]

    def held(self, args: tuple[Any, ...]) -> int:
        """How many numbers :meth:`noted` keeps."""
        return sum(t.numel() for t in tensors_in(args) if memory_of(t) not in self._fixed)

    def alike(self, before: Any, args: tuple[Any, ...]) -> bool:
        """Whether both would compute the same."""
        description, tensors, versions = before
        if description != described(args) or [t._version for t in tensors] != versions:
            return False
        return all(map(self._same, tensors, tensors_in(args)))

    def _same(self, first: Tensor, second: Tensor) -> bool:
        if not memory_of(first):
            return False
        if memory_of(first) != memory_of(second):
            return _equal(first, second)
        return first.data_ptr() == second.data_ptr() and memory_of(first) in self._fixed


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same numbers, none of them NaN."""
    plain = all(one.device.type == "cpu" and one.is_contiguous() for one in (first, second))
    plain = plain and not first.is_neg() and not second.is_neg() and first.dtype in _NUMPY
    if not plain or first.numel() < _MANY:
        return torch.equal(first, second)
    return np.array_equal(looked_at(first), looked_at(second))
