"""Reading by index: the dimension that is looked up keeps all its entries."""

from __future__ import annotations

from typing import Any

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
