"""Sharing: what the masked and the shrunk network both compute is computed once.

A contraction of which channels are gone is, in either network, the contraction of what lives. So
the network that runs second takes over the result of the first, if it would compute it from the
same numbers: the same memory where weights are concerned, values that agree to the last digits
where activations are. Wherever they do not, it computes, and the difference shows at the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_slimga.graph.replay import Replay
from lightning_slimga.graph.trace import described, tensors_in

_STEPS = 4  # of the last digit of the largest number: as far as rounding takes them apart


class Sharing(Replay):
    """Contractions of one network, for another one that runs them on the same numbers."""

    def noted(self, args: tuple[Any, ...]) -> Any:
        """The arguments themselves, and how often they had been written into."""
        tensors = [t.clone() if t.is_inference() else t for t in tensors_in(args)]
        return described(args), tensors, [t._version for t in tensors]

    def alike(self, before: Any, args: tuple[Any, ...]) -> bool:
        """Whether both would compute the same."""
        description, tensors, versions = before
        if description != described(args) or [t._version for t in tensors] != versions:
            return False
        return all(map(_agree, tensors, tensors_in(args)))


def _agree(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of the same shape are the same, up to rounding."""
    if first.data_ptr() == second.data_ptr() or torch.equal(first, second):
        return True
    if not first.is_floating_point():
        return False
    scale = first.abs().max() * torch.finfo(first.dtype).eps * _STEPS
    return bool((first - second).abs().max() <= scale)
