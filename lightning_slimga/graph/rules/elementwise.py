"""Element-wise ops: whatever meets at one index of a dimension is one channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule
from lightning_slimga.graph.trace import tensors_in


def broadcast(op: Op, operands: Sequence[tuple[Sequence[int], Labels]]) -> Labels:
    """Labels of the broadcast of several operands, aligned at the last dimension.

    Args:
        op: the running op; its first output has the broadcast shape.
        operands: ``(shape, labels)`` of each operand.
    """
    shape = op.outputs[0].shape
    result: Labels = []
    for axis in range(-len(shape), 0):
        present = [
            labels[axis] for size, labels in operands if -axis <= len(size) and size[axis] != 1
        ]
        joined = present[0] if present else None
        for other in present[1:]:
            joined = op.tie(joined, other)
        result.append(joined)
    return result


@rule(
    "aten::pointwise",
    "aten::masked_fill",
    "aten::_prelu_kernel",
    "aten::lerp",
    "aten::clamp",
    "aten::where",
    "aten::heaviside",
    "aten::gelu",
    "aten::hardswish",
    "aten::fmod",
    "aten::floor_divide",
    "aten::polar",
    "aten::complex",
    # torch 2.7 does not tag these, or not their in-place variants:
    "aten::celu",
    "aten::elu",
    "aten::hardsigmoid",
    "aten::hardtanh",
    "aten::leaky_relu",
)
def pointwise(op: Op, *arguments: Any) -> Labels:
    """Any number of tensors, broadcast -> their common shape; for every op tagged pointwise."""
    tensors = tensors_in(arguments)
    labels = broadcast(op, [(t.shape, op.labels(t)) for t in tensors])
    for t in tensors:  # nn.PReLU: one slope per channel
        op.attribute(("num_parameters",), next((d for d in labels if d is not None), None), t)
    return labels


@rule("aten::copy")
def copy(op: Op, target: Tensor, source: Tensor, *_: Any) -> Labels:
    """Target any shape, source broadcast to it -> target; the writing itself ties the two."""
    return broadcast(op, [(source.shape, op.labels(source)), (target.shape, op.labels(target))])


@rule(
    "aten::clone",
    "aten::detach",
    "aten::alias",
    "aten::_to_copy",
    "aten::lift_fresh",
    "aten::_conj",
    "aten::fill",
    "aten::zero",
    "aten::bernoulli",
    "aten::uniform",
    "aten::normal",
    "aten::exponential",
    "aten::random",
    "aten::native_dropout",
)
def same(op: Op, x: Tensor, *_: Any) -> tuple[Labels, ...]:
    """X any shape -> the same shape, index by index."""
    labels = op.labels(x)
    return tuple(labels if t.shape == x.shape else [None] * t.dim() for t in op.outputs)
