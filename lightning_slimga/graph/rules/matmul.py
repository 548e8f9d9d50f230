"""Matrix products: linear layers, batched products, einsum (which becomes ``bmm``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_slimga.graph.labels import DimLabels, Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule
from lightning_slimga.graph.rules.elementwise import broadcast
from lightning_slimga.graph.rules.recurrent import keep_sizes


@rule("aten::mm")
def mm(op: Op, a: Tensor, b: Tensor, *_: Any) -> Labels:
    """A (M, K), b (K, N) -> (M, N)."""
    la, lb = op.labels(a), op.labels(b)
    op.contract(la[1], lb[0])
    op.reads(a, over=1)
    op.reads(b, over=0)
    op.attribute(("in_features",), lb[0], b)
    op.attribute(("out_features",), lb[1], b)
    keep_sizes(op, b.t())
    op.macs((la[0], a.shape[0]), (la[1], a.shape[1]), (lb[1], b.shape[1]))
    return [la[0], lb[1]]


@rule("aten::addmm", "aten::_addmm_activation")
def addmm(op: Op, bias: Tensor, a: Tensor, b: Tensor, *_: Any) -> Labels:
    """Bias (N,) or (M, N), a (M, K), b (K, N) -> (M, N)."""
    product = mm(op, a, b)
    return _with_bias(op, bias, product)


@rule("aten::bmm")
def bmm(op: Op, a: Tensor, b: Tensor, *_: Any) -> Labels:
    """A (B, M, K), b (B, K, N) -> (B, M, N)."""
    la, lb = op.labels(a), op.labels(b)
    batch = op.tie(la[0], lb[0])
    op.contract(la[2], lb[1])
    op.reads(a)
    op.reads(b)
    rows, columns, inner = (la[1], a.shape[1]), (lb[2], b.shape[2]), (la[2], a.shape[2])
    op.macs((batch, a.shape[0]), rows, inner, columns, over=la[2])
    return [batch, la[1], lb[2]]


@rule("aten::_grouped_mm")
def grouped_mm(op: Op, a: Tensor, b: Tensor, offsets: Tensor | None, *rest: Any) -> Labels:
    """A (M, K), b (E, K, N), bias (E, N) -> (M, N): experts, each for some of the rows."""
    la, lb = op.labels(a), op.labels(b)
    if a.dim() != 2 or b.dim() != 3 or offsets is None:
        raise ValueError("a form of _grouped_mm other than that of a mixture of experts")
    op.contract(la[1], lb[1])
    op.reads(b)
    for dim in lb[1:]:
        _tie_in_granules(op, dim, 16 // b.element_size())
    channels, bias = lb[2], rest[0]
    if bias is not None:
        op.freeze(op.labels(bias)[0], "experts")
        channels = op.tie(channels, op.labels(bias)[1])
    for dim in (la[0], lb[0]):
        op.freeze(dim, "experts, each for some of the rows")
    op.macs(a.shape[0], (la[1], a.shape[1]), (channels, b.shape[2]))
    return [None, channels]


@rule("aten::baddbmm")
def baddbmm(op: Op, bias: Tensor, a: Tensor, b: Tensor, *_: Any) -> Labels:
    """Bias broadcast to (B, M, N), a (B, M, K), b (B, K, N) -> (B, M, N)."""
    return _with_bias(op, bias, bmm(op, a, b))


@rule("aten::mv")
def mv(op: Op, a: Tensor, b: Tensor) -> Labels:
    """A (M, K), b (K,) -> (M,)."""
    la = op.labels(a)
    op.contract(la[1], op.labels(b)[0])
    op.reads(a)
    return [la[0]]


@rule("aten::dot", "aten::vdot")
def dot(op: Op, a: Tensor, b: Tensor) -> Labels:
    """A (K,), b (K,) -> ()."""
    op.contract(op.labels(a)[0], op.labels(b)[0])
    return []


@rule("aten::_cdist_forward", "aten::_euclidean_dist")
def cdist(op: Op, a: Tensor, b: Tensor, *_: Any) -> Labels:
    """A (*B, M, K), b (*B, N, K) -> (*B, M, N), distances: where both are zero, none is added."""
    la, lb = op.labels(a), op.labels(b)
    op.contract(la[-1], lb[-1])
    if not (a.dim() - 1 in op.zeros(a) and b.dim() - 1 in op.zeros(b)):
        op.freeze(la[-1], "distances are taken over this dimension")
        op.freeze(lb[-1], "distances are taken over this dimension")
    batches = [([*t.shape[:-2], 1, 1], [*op.labels(t)[:-2], None, None]) for t in (a, b)]
    return [*broadcast(op, batches)[:-2], la[-2], lb[-2]]


@rule("aten::_trilinear")
def trilinear(op: Op, x1: Tensor, weight: Tensor, x2: Tensor, *expand: Any) -> Labels:
    """x1 (N, A), weight (O, A, B), x2 (N, B) -> (N, O): the layout of ``nn.Bilinear``."""
    if tuple(map(tuple, expand[:4])) != ((1, 3), (0,), (1, 2), (2, 3)):
        raise ValueError("a layout of _trilinear other than that of nn.Bilinear")
    l1, lw, l2 = op.labels(x1), op.labels(weight), op.labels(x2)
    op.contract(l1[1], lw[1])
    op.contract(l2[1], lw[2])
    op.attribute(("in1_features",), lw[1], weight)
    op.attribute(("in2_features",), lw[2], weight)
    op.attribute(("out_features",), lw[0], weight)
    return [op.tie(l1[0], l2[0]), lw[0]]


def _tie_in_granules(op: Op, labels: DimLabels, size: int) -> None:
    """Let channels go by so many neighbours: the kernel wants rows of whole granules of memory."""
    if labels is not None and len(labels) % size == 0:
        op.store.tie_rows(labels.reshape(-1, size).T)


def _with_bias(op: Op, bias: Tensor, product: Labels) -> Labels:
    return broadcast(op, [(bias.shape, op.labels(bias)), (op.outputs[0].shape, product)])
