"""Pooling, interpolation, padding, pixel shuffles, patches: positions change, channels pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lightning_slimga.graph.labels import NOTHING, Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import rule

_POOLING = [
    *(f"aten::avg_pool{n}d" for n in (2, 3)),
    *(f"aten::max_pool{n}d_with_indices" for n in (2, 3)),
    *(f"aten::_adaptive_avg_pool{n}d" for n in (2, 3)),
    *(f"aten::adaptive_max_pool{n}d" for n in (2, 3)),
    *(f"aten::fractional_max_pool{n}d" for n in (2, 3)),
    *(f"aten::max_unpool{n}d" for n in (2, 3)),
]
_PADDING = [
    *(f"aten::reflection_pad{n}d" for n in (1, 2, 3)),
    *(f"aten::replication_pad{n}d" for n in (1, 2, 3)),
]
_INTERPOLATION = [
    "aten::upsample_nearest1d",
    "aten::upsample_nearest2d",
    "aten::upsample_nearest3d",
    "aten::_upsample_nearest_exact1d",
    "aten::_upsample_nearest_exact2d",
    "aten::_upsample_nearest_exact3d",
    "aten::upsample_linear1d",
    "aten::upsample_bilinear2d",
    "aten::upsample_trilinear3d",
    "aten::upsample_bicubic2d",
    "aten::_upsample_bilinear2d_aa",
    "aten::_upsample_bicubic2d_aa",
]


@rule(*_POOLING, *_PADDING, *_INTERPOLATION)
def spatial(op: Op, x: Tensor, *rest: Any) -> tuple[Labels, ...]:
    """(N, C, *S) or (C, *S) -> the same with other positions; max-pooling adds the indices.

    The last digit in an op's name is the number of its positions' dimensions.
    """
    count = int(next(c for c in reversed(op.name.replace("_aa", "")) if c.isdigit()))
    labels = op.labels(x)
    for dim in labels[-count:]:
        op.freeze(dim, "positions are mixed")
    labels[-count:] = [None] * count
    if "fractional" in op.name:  # random samples (N, C, d)
        labels[:2] = [op.tie(a, b) for a, b in zip(labels[:2], op.labels(rest[2])[:2], strict=True)]
    if "unpool" in op.name:
        labels = [op.tie(a, b) for a, b in zip(labels, op.labels(rest[0]), strict=True)]
    return tuple(list(labels) for _ in op.outputs)


@rule("aten::grid_sampler_2d", "aten::grid_sampler_3d")
def grid_sampler(op: Op, x: Tensor, grid: Tensor, *_: Any) -> Labels:
    """X (N, C, *S), grid (N, *S', d) -> (N, C, *S')."""
    op.freeze_all(grid, "sampling positions")
    labels = op.labels(x)
    for dim in labels[2:]:
        op.freeze(dim, "positions are mixed")
    return [*labels[:2], *([None] * (x.dim() - 2))]


@rule("aten::constant_pad_nd")
def constant_pad(op: Op, x: Tensor, pad: list[int], *_: Any) -> Labels:
    """(…) -> each dimension, from the last, longer by two numbers; what is added has no label."""
    labels = op.labels(x)
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        axis = x.dim() - 1 - i
        inside = labels[axis]
        if (before, after) == (0, 0) or inside is None:
            continue
        if before < 0 or after < 0:
            op.freeze(inside, "cropped by number")
            labels[axis] = None
        else:
            labels[axis] = np.pad(inside, (before, after), constant_values=NOTHING)
    return labels


@rule("aten::pixel_shuffle")
def pixel_shuffle(op: Op, x: Tensor, factor: int) -> Labels:
    """(…, C·r², H, W) -> (…, C, H·r, W·r)."""
    labels = op.labels(x)
    channels = labels[-3]
    if channels is not None:
        channels = op.store.tie_rows(channels.reshape(-1, factor * factor).T)
    _freeze_positions(op, labels)
    return [*labels[:-3], channels, None, None]


@rule("aten::pixel_unshuffle")
def pixel_unshuffle(op: Op, x: Tensor, factor: int) -> Labels:
    """(…, C, H·r, W·r) -> (…, C·r², H, W)."""
    labels = op.labels(x)
    channels = labels[-3]
    if channels is not None:
        channels = np.repeat(channels, factor * factor)
    _freeze_positions(op, labels)
    return [*labels[:-3], channels, None, None]


@rule("aten::channel_shuffle")
def channel_shuffle(op: Op, x: Tensor, groups: int) -> Labels:
    """(N, C, *S) -> (N, C, *S): position j of every group next to each other."""
    labels = op.labels(x)
    if labels[1] is not None:
        labels[1] = np.repeat(op.store.tie_rows(labels[1].reshape(groups, -1)), groups)
    return labels


@rule("aten::im2col")
def im2col(op: Op, x: Tensor, kernel: list[int], *_: Any) -> Labels:
    """(N, C, H, W) -> (N, C·k·k, L)."""
    labels = op.labels(x)
    if x.dim() != 4:
        raise ValueError("an unbatched input")
    _freeze_positions(op, labels)
    channels = labels[1]
    if channels is not None:
        channels = np.repeat(channels, kernel[0] * kernel[1])
    return [labels[0], channels, None]


@rule("aten::col2im")
def col2im(op: Op, x: Tensor, _size: list[int], kernel: list[int], *_: Any) -> Labels:
    """(N, C·k·k, L) -> (N, C, H, W)."""
    labels = op.labels(x)
    if x.dim() != 3:
        raise ValueError("an unbatched input")
    op.freeze(labels[2], "positions are mixed")
    channels = labels[1]
    if channels is not None:
        channels = op.store.tie_rows(channels.reshape(-1, kernel[0] * kernel[1]).T)
    return [labels[0], channels, None, None]


@rule("torchvision::roi_align", "torchvision::roi_pool")
def roi_align(op: Op, x: Tensor, rois: Tensor, *_: Any) -> Any:
    """X (N, C, H, W), rois (K, 5) -> (K, C, h, w)."""
    op.freeze_all(rois, "positions of regions")
    labels = op.labels(x)
    op.freeze(labels[0], "indices are read by number")
    _freeze_positions(op, labels)
    pooled: Labels = [None, labels[1], None, None]
    return tuple(list(pooled) if t.dim() == 4 else None for t in op.outputs)


def _freeze_positions(op: Op, labels: Labels) -> None:
    for dim in labels[-2:]:
        op.freeze(dim, "positions are mixed")
