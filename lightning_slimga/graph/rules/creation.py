"""Tensors made from sizes alone (``zeros``, ``randn``, dropout noise, hidden states).

Their indices get labels of their own: if the size was computed from a channel count, they shrink
along; if it is a number in the code, running the small model shows it, and they are frozen.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule


@rule(
    "aten::empty",
    "aten::zeros",
    "aten::ones",
    "aten::full",
    "aten::rand",
    "aten::randn",
    "aten::new_empty",
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_full",
)
def from_sizes(op: Op, *_: Any) -> Labels:
    """Sizes -> a tensor whose every dimension has labels of its own."""
    return [op.from_size(n) for n in op.outputs[0].shape]


@rule(
    "aten::empty_like",
    "aten::zeros_like",
    "aten::ones_like",
    "aten::full_like",
    "aten::rand_like",
    "aten::randn_like",
    "aten::randint_like",
)
def like(op: Op, x: Tensor, *_: Any) -> Labels:
    """X any shape -> a tensor of the same shape, index by index."""
    return op.labels(x)
