"""Concatenation, stacking, splitting, slicing: indices are put together or cut apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import Any

import numpy as np
from torch import Tensor

from lightning_slimga.graph.labels import DimLabels, LabelArray, Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule

_SIZES = ("split", "section", "chunk", "sizes", "dims", "channels", "widths", "features", "parts")
"""How modules call the sizes into which they split; each of these in a longer name, too."""


@rule("aten::cat")
def cat(op: Op, tensors: Sequence[Tensor], dim: int = 0) -> Labels:
    """(…, C1, …), (…, C2, …), … -> (…, C1 + C2 + …, …)."""
    parts = [t for t in tensors if t.dim() == op.outputs[0].dim()]  # legacy: empty 1-d tensors
    labels = [op.labels(t) for t in parts]
    axis = dim % parts[0].dim()
    result: Labels = []
    for i in range(parts[0].dim()):
        if i == axis:
            pieces = [op.full(one[i], t.shape[i]) for one, t in zip(labels, parts, strict=True)]
            joined = np.concatenate(pieces)
            result.append(joined if (joined >= 0).any() else None)
        else:
            result.append(_tie_all(op, [one[i] for one in labels]))
    return result


@rule("aten::stack")
def stack(op: Op, tensors: Sequence[Tensor], dim: int = 0) -> Labels:
    """N times (…) -> (…, n, …)."""
    labels = [op.labels(t) for t in tensors]
    axis = dim % op.outputs[0].dim()
    tied = [_tie_all(op, list(dims)) for dims in zip(*labels, strict=True)]
    return [*tied[:axis], None, *tied[axis:]]


@rule("aten::split", "aten::unsafe_split")
def split(op: Op, x: Tensor, _size: int, dim: int = 0) -> tuple[Labels, ...]:
    """(…, C, …) -> pieces along ``dim``."""
    return _pieces(op, x, dim)


@rule("aten::split_with_sizes", "aten::unsafe_split_with_sizes")
def split_with_sizes(op: Op, x: Tensor, _sizes: list[int], dim: int = 0) -> tuple[Labels, ...]:
    """(…, C, …) -> pieces of the given sizes along ``dim``."""
    return _pieces(op, x, dim, kept=True)


@rule("aten::slice")
def slice_(op: Op, x: Tensor, dim: int = 0, *bounds: Any) -> Labels:
    """(…, C, …) -> (…, C[start:end:step], …)."""
    labels = op.labels(x)
    axis, size = dim % x.dim(), x.shape[dim]
    start, end, step = slice(*[*bounds, None, None, 1][:3]).indices(size)
    cut = labels[axis]
    if cut is None or (start, end, step) == (0, size, 1):
        return labels
    if step != 1:
        op.freeze(cut, "every n-th index is read")
    _repeat_with_period(op, cut, gcd(size, start, end))
    labels[axis] = cut[start:end:step]
    return labels


@rule("aten::glu")
def glu(op: Op, x: Tensor, dim: int = -1) -> Labels:
    """(…, 2C, …) -> (…, C, …): the second half gates the first."""
    labels = op.labels(x)
    axis = dim % x.dim()
    halves = labels[axis]
    labels[axis] = None if halves is None else op.store.tie_rows(halves.reshape(2, -1))
    return labels


@rule("aten::unbind")
def unbind(op: Op, x: Tensor, dim: int = 0) -> tuple[Labels, ...]:
    """(…, n, …) -> n times (…)."""
    labels = op.labels(x)
    op.freeze(labels.pop(dim % x.dim()), "taken apart index by index")
    return tuple(list(labels) for _ in op.outputs)


def _pieces(op: Op, x: Tensor, dim: int, *, kept: bool = False) -> tuple[Labels, ...]:
    """Labels of the pieces; their sizes may be ``kept`` as a list by the module that runs."""
    axis = dim % x.dim()
    sizes = [t.shape[axis] for t in op.outputs]
    labels = op.labels(x)
    cut = labels[axis]
    if cut is None:
        return tuple(list(labels) for _ in sizes)
    parts = [cut[a:b] for a, b in pairwise(np.cumsum([0, *sizes]))]
    if not (kept and op.list_attribute(_SIZES, sizes, parts)):
        _repeat_with_period(op, cut, gcd(*sizes))
    return tuple([*labels[:axis], part, *labels[axis + 1 :]] for part in parts)


def _repeat_with_period(op: Op, labels: LabelArray, period: int) -> None:
    """Let every stretch between two cuts lose the same positions.

    Then a cut that is computed from the size (``x[:, : c // 2]``) falls right again; one that is a
    number in the code is found by the proof.
    """
    if len(labels):
        op.store.tie_rows(labels.reshape(-1, max(period, 1)))


def _tie_all(op: Op, dims: list[DimLabels]) -> DimLabels:
    joined = dims[0]
    for other in dims[1:]:
        joined = op.tie(joined, other)
    return joined
