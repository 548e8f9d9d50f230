"""Views: the same elements under other dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lightning_slimga.graph.labels import DimLabels, LabelArray, Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule

# What attention modules call their number of heads, and the width of all heads together.
_HEADS = ("num_heads", "n_heads", "heads", "nhead", "n_head", "num_attention_heads")
_WIDTHS = ("attn_dim", "inner_dim", "all_head_size", "embed_dim", "hidden_size", "d_model", "dim")


@rule(
    "aten::view",
    "aten::_unsafe_view",
    "aten::_reshape_alias",
)
def view(op: Op, x: Tensor, *_: Any) -> Labels:
    """(…) -> the same elements in another shape; stretches of equal product are matched."""
    out = op.outputs[0]
    if x.dtype != out.dtype or x.numel() == 0:
        raise ValueError("a view of other elements")
    labels = op.labels(x)
    result: Labels = [None] * out.dim()
    for old, new in _matching_stretches(x.shape, out.shape):
        named = [labels[i] for i in old]
        regrouped = _regroup(op, named, [x.shape[i] for i in old], [out.shape[j] for j in new])
        for j, dim in zip(new, regrouped, strict=True):
            result[j] = dim
    return result


def _matching_stretches(
    old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut both shapes into the shortest stretches of equal product, dimensions of 1 left out."""
    a = [i for i, n in enumerate(old) if n != 1]
    b = [j for j, n in enumerate(new) if n != 1]
    while a or b:
        left, right = [a.pop(0)], [b.pop(0)]
        size_left, size_right = old[left[0]], new[right[0]]
        while size_left != size_right:
            if size_left < size_right:
                left.append(a.pop(0))
                size_left *= old[left[-1]]
            else:
                right.append(b.pop(0))
                size_right *= new[right[-1]]
        yield left, right


def _regroup(op: Op, labels: Labels, old: list[int], new: list[int]) -> Labels:
    """Labels of one stretch: old sizes (a1, a2, …) -> new sizes (b1, b2, …)."""
    if len(old) == len(new) == 1:
        return labels
    labelled = [i for i, dim in enumerate(labels) if dim is not None]
    if len(labelled) > 1:  # one dimension of the result has channels of one dimension at most
        labelled = [i for i in labelled if not op.store.is_frozen(op.full(labels[i], old[i]))]
    if not labelled:
        return [None] * len(new)
    axis = _leading(op, labels, labelled)
    for i in labelled:
        if i != axis:
            op.freeze(labels[i], "two dimensions with channels become one")
    shape = [n if i == axis else 1 for i, n in enumerate(old)]
    elements = np.broadcast_to(op.full(labels[axis], old[axis]).reshape(shape), old)
    if len(new) == 1:
        joined = elements.ravel()
        op.attribute(_WIDTHS, joined)
        return [joined]
    return _divide(op, elements.reshape(new))


def _leading(op: Op, labels: Labels, labelled: list[int]) -> int:
    """Which of several dimensions gives its channels to the one that they become: the first.

    Of a weight that is its channels, not the positions of a window. A dimension that no parameter
    shares has been made from sizes, and comes last.
    """
    if len(labelled) > 1:
        held = [d for dims in op.trace.slot_labels.values() for d in dims if d is not None]
        owned = op.store.find(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
        for i in labelled:
            if np.isin(op.store.find(op.full(labels[i], 0)), owned).any():
                return i
    return labelled[0]


def _divide(op: Op, elements: LabelArray) -> Labels:
    """Give the labels of a block of elements to the one dimension that they belong to.

    Where they vary along several dimensions, one carries them and the others' indices are tied:
    (C,) seen as (g, C/g) loses the same position of every group.
    """
    roots = op.store.find(elements.ravel()).reshape(elements.shape)
    result: Labels = [None] * elements.ndim
    for axis in range(elements.ndim):
        columns = np.moveaxis(roots, axis, 0).reshape(elements.shape[axis], -1)
        if (columns == columns[:, :1]).all():
            result[axis] = _first(elements, axis)
            return result
    axis = _carrier(op, elements.shape)
    rows = np.moveaxis(elements, axis, -1).reshape(-1, elements.shape[axis])
    result[axis] = op.store.tie_rows(rows)
    op.attribute(_HEADS, result[axis])
    return result


def _first(elements: LabelArray, axis: int) -> LabelArray:
    return np.ascontiguousarray(
        np.moveaxis(elements, axis, 0).reshape(elements.shape[axis], -1)[:, 0]
    )


def _carrier(op: Op, shape: tuple[int, ...]) -> int:
    """Which of several dimensions carries the channels.

    Heads where the module names them, else the longest (the last of equals). Heads stand before
    the width of a head and after q, k, v, which may be just as many.
    """
    module = op.trace.modules[op.module]
    last = len(shape) - 1
    axes: list[int] = [*range(last - 1, -1, -1), last]
    for axis in axes:
        if any(getattr(module, name, None) == shape[axis] for name in _HEADS):
            return axis
    return max(range(len(shape)), key=lambda axis: (shape[axis], axis))


@rule("aten::expand")
def expand(op: Op, x: Tensor, *_: Any) -> Labels:
    """(…, 1, …) -> (…, n, …), dimensions added in front; n may have been asked of channels."""
    out = op.outputs[0]
    labels: Labels = [*([None] * (out.dim() - x.dim())), *op.labels(x)]
    sizes = [*([1] * (out.dim() - x.dim())), *x.shape]
    return [
        op.from_size(new) if old == 1 != new else dim
        for old, new, dim in zip(sizes, out.shape, labels, strict=True)
    ]


@rule("aten::repeat")
def repeat(op: Op, x: Tensor, repeats: list[int]) -> Labels:
    """(…, C, …) -> (…, r·C, …), dimensions added in front."""
    added = len(repeats) - x.dim()
    labels: Labels = [*([None] * added), *op.labels(x)]
    sizes = [*([1] * added), *x.shape]
    return [
        op.from_size(times) if size == 1 else dim if dim is None else np.tile(dim, times)
        for dim, size, times in zip(labels, sizes, repeats, strict=True)
    ]


@rule("aten::as_strided")
def as_strided(op: Op, x: Tensor, _size: Any, strides: list[int], offset: Any = None) -> Labels:
    """(…) -> the same shape and order in memory (as channels-last pooling does it), else frozen."""
    out = op.outputs[0]
    moved = x.shape != out.shape or offset not in (None, x.storage_offset())
    pairs = zip(x.shape, x.stride(), strides, strict=False)
    if moved or any(n > 1 and a != b for n, a, b in pairs):
        op.freeze_all(x, "read by strides")
        return [None] * out.dim()
    return op.labels(x)


@rule("aten::permute")
def permute(op: Op, x: Tensor, dims: list[int]) -> Labels:
    """Dimensions in another order."""
    labels = op.labels(x)
    return [labels[d] for d in dims]


@rule("aten::transpose")
def transpose(op: Op, x: Tensor, a: int, b: int) -> Labels:
    """Two dimensions exchanged."""
    labels = op.labels(x)
    if labels:
        labels[a], labels[b] = labels[b], labels[a]
    return labels


@rule("aten::t")
def t(op: Op, x: Tensor) -> Labels:
    """(A, B) -> (B, A)."""
    return op.labels(x)[::-1]


@rule("aten::unsqueeze")
def unsqueeze(op: Op, x: Tensor, dim: int) -> Labels:
    """A dimension of size 1 put in."""
    labels: list[DimLabels] = op.labels(x)
    labels.insert(dim % (x.dim() + 1), None)
    return labels


@rule("aten::squeeze")
def squeeze(op: Op, x: Tensor, dims: Any = None) -> Labels:
    """Dimensions of size 1 taken out."""
    labels = op.labels(x)
    named = [dims] if isinstance(dims, int) else dims
    axes = list(range(x.dim())) if dims is None else [d % max(x.dim(), 1) for d in named]
    return [dim for i, dim in enumerate(labels) if i not in axes or x.shape[i] != 1]


@rule("aten::unfold")
def unfold(op: Op, x: Tensor, dim: int, _size: int, _step: int) -> Labels:
    """(…, n, …) -> (…, windows, …, size)."""
    labels = op.labels(x)
    op.freeze(labels[dim], "read by windows")
    labels[dim] = None
    return [*labels, None]
