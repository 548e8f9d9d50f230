"""Rows: pooling, padding, interpolation, patches, regions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from tests.graph.rows.row import S1, S2, S3, Row


def _unpool(x: Tensor) -> Tensor:
    if x.dim() == 5:
        return F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2)
    return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)


def _sampled(x: Tensor) -> Tensor:
    rank = x.dim() - 2
    grid = torch.linspace(-1, 1, 2 * 3**rank * rank, dtype=x.dtype).view(2, *[3] * rank, rank)
    return F.grid_sample(x, grid, align_corners=False)


def _regions(x: Tensor, pool: Callable[..., Tensor]) -> Tensor:
    boxes = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 1, 3, 2]], dtype=x.dtype)
    return pool(x, boxes, 2)


def _resized(mode: str, spatial: tuple[int, ...], **options: bool) -> Row:
    name = {"bilinear": "bilinear2d", "linear": "linear1d", "trilinear": "trilinear3d"}.get(mode)
    rank = len(spatial)
    name = name or f"{mode.replace('-', '_')}{rank}d"
    op = f"aten::upsample_{name}"
    if mode == "nearest-exact":
        op = f"aten::_upsample_{name}"
    if options.get("antialias"):
        op = f"aten::_upsample_{name}_aa"
    return Row(op, lambda x: F.interpolate(x, scale_factor=2, mode=mode, **options), 8, spatial)


SPATIAL = [
    Row("aten::avg_pool2d", lambda x: F.avg_pool1d(x, 2), 8, S1),
    Row("aten::avg_pool2d", lambda x: F.avg_pool2d(x, 2)),
    Row("aten::avg_pool3d", lambda x: F.avg_pool3d(x, 2), 8, S3),
    Row("aten::max_pool2d_with_indices", lambda x: F.max_pool1d(x, 2), 8, S1),
    Row("aten::max_pool2d_with_indices", lambda x: F.max_pool2d(x, 2)),
    Row("aten::max_pool3d_with_indices", lambda x: F.max_pool3d(x, 2), 8, S3),
    Row("aten::_adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool1d(x, 2), 8, S1),
    Row("aten::_adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 3)),
    Row("aten::_adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, 3), 8, S3),
    Row("aten::adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 3)),
    Row("aten::adaptive_max_pool3d", lambda x: F.adaptive_max_pool3d(x, 3), 8, S3),
    Row("aten::max_unpool2d", _unpool),
    Row("aten::max_unpool3d", _unpool, 8, S3),
    Row("aten::fractional_max_pool2d", lambda x: F.fractional_max_pool2d(x, 2, 2)),
    Row("aten::fractional_max_pool3d", lambda x: F.fractional_max_pool3d(x, 2, 2), 8, S3),
    Row("aten::reflection_pad1d", lambda x: F.pad(x, (1, 1), mode="reflect"), 8, S1),
    Row("aten::reflection_pad2d", lambda x: F.pad(x, (1, 1, 1, 0), mode="reflect")),
    Row("aten::reflection_pad3d", lambda x: F.pad(x, (1,) * 6, mode="reflect"), 8, S3),
    Row("aten::replication_pad1d", lambda x: F.pad(x, (1, 1), mode="replicate"), 8, S1),
    Row("aten::replication_pad2d", lambda x: F.pad(x, (1, 1, 1, 0), mode="replicate")),
    Row("aten::replication_pad3d", lambda x: F.pad(x, (1,) * 6, mode="replicate"), 8, S3),
    Row("aten::constant_pad_nd", lambda x: F.pad(x, (1, 0, 2, 1), value=0.5)),
    Row("aten::constant_pad_nd", lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5)),
    Row("aten::constant_pad_nd", lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), 0),
    Row("aten::grid_sampler_2d", _sampled),
    Row("aten::grid_sampler_3d", _sampled, 8, S3),
    Row("aten::pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), 2),
    Row("aten::pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2)),
    Row("aten::channel_shuffle", lambda x: F.channel_shuffle(x, 2), 4),
    Row("aten::im2col", lambda x: F.unfold(x, 2)),
    Row("aten::col2im", lambda x: F.fold(F.unfold(x, 2), (4, 4), 2)),
    Row("torchvision::roi_align", lambda x: _regions(x, torchvision.ops.roi_align)),
    Row("torchvision::roi_pool", lambda x: _regions(x, torchvision.ops.roi_pool)),
    _resized("nearest", S1),
    _resized("nearest", S2),
    _resized("nearest", S3),
    _resized("nearest-exact", S1),
    _resized("nearest-exact", S2),
    _resized("nearest-exact", S3),
    _resized("linear", S1),
    _resized("bilinear", S2),
    _resized("trilinear", S3),
    _resized("bicubic", S2),
    _resized("bilinear", S2, antialias=True),
    _resized("bicubic", S2, antialias=True),
]
