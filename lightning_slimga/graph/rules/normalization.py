"""Normalisation: statistics per channel tie, statistics across channels freeze."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lightning_slimga.graph.labels import DimLabels, Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule


@rule(
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_no_training",
    "aten::_batch_norm_with_update",
    "aten::_batch_norm_no_update",
    "aten::cudnn_batch_norm",
    "aten::miopen_batch_norm",
    "aten::batch_norm_elemt",
)
def batch_norm(op: Op, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
    """X (N, C, *S), weight, bias and running statistics (C,) -> (N, C, *S), saved statistics.

    In training statistics are taken over N and S: where these hold channels (norms of tokens, of
    weights), they depend on all of them.
    """
    labels = op.labels(x)
    for dim in (labels[0], *labels[2:]):
        _freeze_or_approximate(op, dim)
    statistics = [t for t in rest if isinstance(t, Tensor) and t.dim() == 1]
    for vector in (weight, bias, *statistics):
        if vector is not None:
            labels[1] = op.tie(labels[1], op.labels(vector)[0])
    op.scaling_factor(weight)
    op.attribute(("num_features",), _of_one_sample(op, labels[1]), weight, *statistics)
    size = x.shape[1]
    saved = [[labels[1]] if tuple(t.shape) == (size,) else None for t in op.outputs[1:]]
    return (labels, *saved)


def _of_one_sample(op: Op, labels: DimLabels) -> DimLabels:
    """Instance norm sees the channels of all samples in a row: those of the first one."""
    size = getattr(op.trace.modules[op.module], "num_features", None)
    if labels is None or not isinstance(size, int) or size < 1 or len(labels) % size:
        return labels
    samples = labels.reshape(-1, size)
    return samples[0] if (samples == samples[0]).all() else labels


@rule("aten::native_group_norm")
def group_norm(op: Op, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
    """X (N, C, *S), weight and bias (C,) -> (N, C, *S): a group goes as a whole or stays."""
    groups = int(rest[3])
    labels = op.labels(x)
    for vector in (weight, bias):
        if vector is not None:
            labels[1] = op.tie(labels[1], op.labels(vector)[0])
    for dim in labels[2:]:
        op.freeze(dim, "statistics are taken over this dimension")
    op.scaling_factor(weight)
    group = None
    if labels[1] is not None:
        group = op.store.tie_rows(labels[1].reshape(groups, -1).T)
        op.attribute(("num_groups",), group, weight)
        op.attribute(("num_channels",), labels[1], weight)
    return (labels, [labels[0], group], [labels[0], group])


@rule("aten::native_layer_norm")
def layer_norm(
    op: Op, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, *_: Any
) -> Any:
    """X (…, *shape), weight and bias (*shape) -> (…, *shape), statistics (…)."""
    labels = _across(op, x, shape, weight, bias)
    statistics = [*labels[: -len(shape)], *([None] * len(shape))]
    return (labels, statistics, list(statistics))


@rule("aten::_fused_rms_norm")
def fused_rms_norm(op: Op, x: Tensor, shape: list[int], weight: Tensor | None, *_: Any) -> Any:
    """X (…, *shape), weight (*shape) -> (…, *shape), statistics (…)."""
    labels = _across(op, x, shape, weight, None)
    return (labels, [*labels[: -len(shape)], *([None] * len(shape))])


@rule("aten::_softmax", "aten::_log_softmax", "aten::_safe_softmax")
def softmax(op: Op, x: Tensor, dim: int, *_: Any) -> Labels:
    """(…, n, …) -> (…, n, …), normalised over ``dim``."""
    labels = op.labels(x)
    if x.dim():
        op.freeze(labels[dim % x.dim()], "normalised over this dimension")
    return labels


@rule("aten::_weight_norm_interface")
def weight_norm(op: Op, v: Tensor, g: Tensor, dim: int = 0) -> Any:
    """V (O, I, *K), g (O, 1, …) -> v·g/|v| (O, I, *K), norms: each slice of ``dim`` on its own."""
    lv, lg = op.labels(v), op.labels(g)
    axis = dim % v.dim()
    op.divides_by(v, axis)
    for i, label in enumerate(lv):
        if i != axis and i not in op.zeros(v):
            op.freeze(label, "a norm is taken over this dimension")
    lv[axis] = op.tie(lv[axis], lg[axis])
    return (lv, lg)


@rule("aten::renorm")
def renorm(op: Op, x: Tensor, _p: float, dim: int, _max: float) -> Labels:
    """(…) -> the same shape; slices of ``dim`` whose norm is larger than a number are scaled."""
    labels = op.labels(x)
    for i, label in enumerate(labels):
        if i != dim % x.dim() and i not in op.zeros(x):
            op.freeze(label, "a norm is taken over this dimension")
    return labels


def _across(
    op: Op, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None
) -> Labels:
    """Tie, and freeze unless approximate pruning was asked for."""
    labels = op.labels(x)
    for i in range(-len(shape), 0):
        for vector in (weight, bias):
            if vector is not None:
                labels[i] = op.tie(labels[i], op.labels(vector)[i])
        _freeze_or_approximate(op, labels[i])
        op.attribute((f"normalized_shape.{i}",), labels[i], weight, bias)
    return labels


def _freeze_or_approximate(op: Op, labels: DimLabels) -> None:
    if labels is None:
        return
    if op.trace.approximate and np.any(labels >= 0):
        op.trace.approximations[op.where] = labels
    else:
        op.freeze(labels, "statistics are taken over channels")
