"""Convolutions: plain, grouped, depthwise, transposed, deformable; any number of dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lightning_slimga.graph.labels import DimLabels, LabelArray, Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule


@rule("aten::convolution")
def convolution(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Labels:
    """X (N, C, *S), weight (O, C/g, *K) or transposed (C, O/g, *K) -> (N, O, *S')."""
    transposed, groups = bool(geometry[3]), int(geometry[5])
    out = op.outputs[0]
    spatial = x if transposed else out
    _count_macs(op, op.labels(x), weight, tuple(spatial.shape[2:]), x.shape[0])
    return _convolve(op, x, weight, bias, groups, transposed)


@rule("torchvision::deform_conv2d")
def deform_conv2d(op: Op, x: Tensor, weight: Tensor, *rest: Any) -> Labels:
    """X (N, C, H, W), weight (O, C/g, K, K), offset (N, 2KK·g', H', W') -> (N, O, H', W')."""
    offset, mask, bias, groups = rest[0], rest[1], rest[2], int(rest[9])
    op.freeze_all(offset, "offsets of a deformable convolution")
    op.freeze_all(mask, "modulation of a deformable convolution")
    return _convolve(op, x, weight, bias, groups, transposed=False)


def _convolve(
    op: Op, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool
) -> Labels:
    lx, lw = op.labels(x), op.labels(weight)
    op.reads(weight, over=0 if transposed else 1)
    for dim in lx[2:]:
        op.freeze(dim, "a convolution moves along it")
    for dim in lw[2:]:
        op.freeze(dim, "position inside a convolution's window")
    if groups == 1:
        in_axis, out_axis = (0, 1) if transposed else (1, 0)
        op.contract(lx[1], lw[in_axis])
        channels = lw[out_axis]
        op.attribute(("in_channels",), lw[in_axis], weight)
    else:
        channels = _grouped(op, x, weight, groups, transposed)
    op.attribute(("out_channels",), channels, weight)
    if bias is not None:
        channels = op.tie(channels, op.labels(bias)[0])
    return [lx[0], channels, *([None] * (op.outputs[0].dim() - 2))]


def _grouped(op: Op, x: Tensor, weight: Tensor, groups: int, transposed: bool) -> DimLabels:
    """Output labels of a convolution with several groups.

    Either whole groups go (channels of a group live and die together, ``groups`` falls), or the
    same position goes from every group (``groups`` stays); the choice with more channels is taken.
    """
    in_per_group = x.shape[1] // groups
    out_per_group = op.outputs[0].shape[1] // groups
    inputs = op.full(op.labels(x)[1], x.shape[1]).reshape(groups, in_per_group)
    first = op.labels(weight)[0]
    rows = op.full(first, weight.shape[0]).reshape(groups, -1)
    fixed = op.labels(weight)[1]
    if groups >= min(in_per_group, out_per_group):
        return _whole_groups(op, inputs, rows, fixed, weight, out_per_group, transposed)
    position = op.store.tie_rows(inputs)
    if transposed:
        op.contract(position, op.store.tie_rows(rows))
        outputs = np.tile(op.full(fixed, out_per_group), groups)
    else:
        op.contract(position, fixed)
        op.store.tie_rows(rows)
        outputs = rows.ravel()
    op.attribute(("in_channels",), inputs.ravel(), weight)
    return outputs


def _whole_groups(
    op: Op,
    inputs: LabelArray,
    rows: LabelArray,
    fixed: DimLabels,
    weight: Tensor,
    out_per_group: int,
    transposed: bool,
) -> DimLabels:
    op.freeze(fixed, "channels inside a group stay, whole groups go")
    group = op.store.tie_rows(np.concatenate([inputs, rows], axis=1).T)
    op.attribute(("groups",), group, weight)
    op.attribute(("in_channels",), inputs.ravel(), weight)
    return np.repeat(group, out_per_group) if transposed else rows.ravel()


def _count_macs(op: Op, lx: Labels, weight: Tensor, positions: tuple[int, ...], batch: int) -> None:
    """One MAC per weight, output position and sample (torch's counter: 2 FLOPs each)."""
    lw = op.labels(weight)
    window = int(np.prod([*positions, *weight.shape[2:]], dtype=np.int64))
    op.macs(window, (lx[0], batch), (lw[0], weight.shape[0]), (lw[1], weight.shape[1]))
