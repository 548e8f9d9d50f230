"""Reductions: the dimension that is summed over keeps all its entries."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule


@rule(
    "aten::mean",
    "aten::sum",
    "aten::amax",
    "aten::amin",
    "aten::prod",
    "aten::var",
    "aten::std",
    "aten::var_mean",
    "aten::std_mean",
    "aten::norm",
    "aten::max",
    "aten::min",
    "aten::argmax",
    "aten::argmin",
    "aten::all",
    "aten::any",
    "aten::logsumexp",
    "aten::median",
    "aten::kthvalue",
    "aten::mode",
    "aten::nansum",
    "aten::count_nonzero",
    "aten::aminmax",
)
def reduce(op: Op, x: Tensor, *arguments: Any) -> Any:
    """(…) -> the given dimensions gone, or of size 1 where kept."""
    if arguments and isinstance(arguments[0], Tensor):  # aten::max.other is element-wise
        raise ValueError("an element-wise overload")
    return _reduced(op, x, _argument(op, "dim"))


@rule("aten::linalg_vector_norm")
def vector_norm(op: Op, x: Tensor, *_: Any) -> Any:
    """(…) -> the given dimensions gone, or of size 1 where kept."""
    return _reduced(op, x, _argument(op, "dim"))


@rule(
    "aten::cumsum",
    "aten::cumprod",
    "aten::cummax",
    "aten::cummin",
    "aten::logcumsumexp",
    "aten::sort",
    "aten::topk",
    "aten::flip",
    "aten::roll",
)
def along(op: Op, x: Tensor, *_: Any) -> Any:
    """(…) -> the same shape, entries along a dimension mixed or moved."""
    labels = op.labels(x)
    dims = _argument(op, "dims" if _has(op, "dims") else "dim")
    for axis in _axes(dims, x.dim()) or range(x.dim()):
        op.freeze(labels[axis], "entries along this dimension are mixed")
        labels[axis] = None
    return tuple(list(labels) for _ in op.outputs)


def _reduced(op: Op, x: Tensor, dims: Any) -> Any:
    labels = op.labels(x)
    axes = _axes(dims, x.dim()) or list(range(x.dim()))
    exact = op.zeros(x) if _takes_no_notice_of_zeros(op) else frozenset()
    for axis in (a for a in axes if a not in exact):
        op.freeze_if_read(labels[axis], "reduced over this dimension")
    kept = [dim for i, dim in enumerate(labels) if i not in axes]
    with_ones: Labels = [None if i in axes else dim for i, dim in enumerate(labels)]
    return tuple(with_ones if t.dim() == x.dim() else list(kept) for t in op.outputs)


def _takes_no_notice_of_zeros(op: Op) -> bool:
    """Whether zeros change nothing: sums, and norms but for those of the smallest entry."""
    if op.name in ("aten::sum", "aten::nansum", "aten::count_nonzero"):
        return True
    if op.name not in ("aten::norm", "aten::linalg_vector_norm"):
        return False
    order = _argument(op, "p" if op.name == "aten::norm" else "ord")
    return order is None or (isinstance(order, (int, float)) and order >= 0)


def _axes(dims: Any, rank: int) -> list[int]:
    if dims is None:
        return []
    dims = [dims] if isinstance(dims, int) else list(dims)
    return [d % rank for d in dims] if rank else []


def _has(op: Op, name: str) -> bool:
    return any(a.name == name for a in op.func._schema.arguments)


def _argument(op: Op, name: str) -> Any:
    for argument, value in zip(op.func._schema.arguments, op.arguments, strict=True):
        if argument.name == name:
            return value
    return None
