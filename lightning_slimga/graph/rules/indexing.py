"""Reading and writing by index: the dimension that is looked up keeps all its entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule


@rule("aten::select")
def select(op: Op, x: Tensor, dim: int, _index: int) -> Labels:
    """(…, n, …) -> (…) at one index of ``dim``."""
    labels = op.labels(x)
    op.freeze(labels.pop(dim % x.dim()), "one index is read by number")
    return labels


@rule("aten::index_select")
def index_select(op: Op, x: Tensor, dim: int, _index: Tensor) -> Labels:
    """(…, n, …) -> (…, len(index), …)."""
    labels = op.labels(x)
    if x.dim():
        op.freeze(labels[dim % x.dim()], "indices are read by number")
        labels[dim % x.dim()] = None
    return labels


@rule("aten::index")
def index(op: Op, x: Tensor, indices: list[Tensor | None]) -> Labels:
    """x, one index tensor (or None) per dimension -> numpy's advanced indexing."""
    labels = op.labels(x)
    for one in indices:
        if one is not None:
            op.freeze_all(one, "used as an index")
    if any(
        one is not None
        and one.dtype.is_floating_point is False
        and one.element_size() == 1
        and one.dim() > 1
        for one in indices
    ):  # a boolean mask over several dimensions
        op.freeze_all(x, "read through a mask")
        return [None] * op.outputs[0].dim()
    places = [i for i, one in enumerate(indices) if one is not None]
    for i in places:
        op.freeze(labels[i], "indices are read by number")
    kept: Labels = [labels[i] for i in range(x.dim()) if i not in places]
    width = op.outputs[0].dim() - len(kept)
    adjacent = places == list(range(places[0], places[-1] + 1))
    position = places[0] if adjacent else 0
    new: Labels = [None] * width
    return [*kept[:position], *new, *kept[position:]]


@rule("aten::embedding")
def embedding(op: Op, weight: Tensor, indices: Tensor, *_: Any) -> Labels:
    """Weight (V, C), indices (…) -> (…, C)."""
    entries, channels = op.labels(weight)
    op.freeze(entries, "entries of a table")
    op.freeze_all(indices, "used as an index")
    op.attribute(("embedding_dim",), channels, weight)
    return [*([None] * indices.dim()), channels]


@rule("aten::gather")
def gather(op: Op, x: Tensor, dim: int, index: Tensor, *_: Any) -> Labels:
    """(…, n, …), index (…, m, …) -> (…, m, …): along the other dimensions index by index."""
    return _along_others(op, [x, index], dim)


@rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(op: Op, x: Tensor, dim: int, index: Tensor, source: Any, *_: Any) -> Labels:
    """X (…, n, …), index and source (…, m, …) -> x, written into at indices of ``dim``."""
    sources = [source] if isinstance(source, Tensor) else []
    return _along_others(op, [x, index, *sources], dim)


@rule("aten::index_add", "aten::index_reduce", "aten::index_copy", "aten::index_fill")
def index_add(op: Op, x: Tensor, dim: int, _index: Tensor, source: Any, *_: Any) -> Labels:
    """X (…, n, …), index (m,), source (…, m, …) -> x, written into at indices of ``dim``."""
    whole = isinstance(source, Tensor) and source.dim() == x.dim()
    return _along_others(op, [x, source] if whole else [x], dim)


@rule("aten::index_put", "aten::_index_put_impl")
def index_put(op: Op, x: Tensor, indices: list[Tensor | None], values: Tensor, *_: Any) -> Labels:
    """X (n, …), indices of its first dimensions, values broadcast to the entries -> x."""
    labels, count = op.labels(x), len(indices)
    plain = [i for i in indices if i is not None and i.dtype not in (torch.bool, torch.uint8)]
    if len(plain) != count:
        raise ValueError("written through a mask, or along later dimensions")
    for one in plain:
        op.freeze_all(one, "used as an index")
    for dim in labels[:count]:
        op.freeze(dim, "indices are written by number")
    rest, given = labels[count:], op.labels(values)
    width = len(rest) if len(given) > len(rest) else len(given)
    for axis in range(-width, 0):
        if values.shape[axis] != 1:
            labels[axis] = op.tie(labels[axis], given[axis])
    for dim in given[: len(given) - width]:
        op.freeze(dim, "indices are written by number")
    return labels


def _along_others(op: Op, tensors: list[Tensor], dim: int) -> Labels:
    """Tie all dimensions but the one along which entries are looked up; that one has no labels."""
    rank = tensors[0].dim()
    labels = [op.labels(t) for t in tensors]
    result: Labels = []
    for axis in range(rank):
        dims = [one[axis] for one in labels]
        if axis == dim % rank or len({t.shape[axis] for t in tensors}) > 1:
            for one in dims:
                op.freeze(one, "entries are looked up by number")
            result.append(None)
            continue
        joined = dims[0]
        for other in dims[1:]:
            joined = op.tie(joined, other)
        result.append(joined)
    return result
