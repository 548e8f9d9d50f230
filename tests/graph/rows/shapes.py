"""Rows: views, joins, cuts, indices, reductions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.graph.rows.row import Row


def _at(x: Tensor, dim: int) -> Tensor:
    """Indices along a dimension, the same for all others."""
    index = torch.arange(x.shape[dim]).flip(0)
    return index.view([-1 if d == dim else 1 for d in range(x.dim())]).expand_as(x)


def _put(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[torch.tensor([1, 0])] = x
    return y


SHAPES = [
    Row("aten::view", lambda x: x.flatten(1)),
    Row("aten::view", lambda x: x.view(len(x), 2, -1, 4, 4).mean(2).flatten(1), 0),
    Row("aten::view", lambda x: x.view(len(x), 2, -1, 4, 4).sin(), 4),
    Row("aten::view", lambda x: x.view(len(x), 2, 4, 4, 4).sin(), 0),
    Row("aten::_unsafe_view", lambda x: x.movedim(1, -1).reshape(len(x), -1)),
    Row("aten::expand", lambda x: x[:, :, None].expand(-1, -1, 3, -1, -1)),
    Row("aten::repeat", lambda x: x.repeat(1, 2, 1, 1)),
    Row("aten::permute", lambda x: x.permute(2, 3, 1, 0).permute(3, 2, 0, 1)),
    Row("aten::transpose", lambda x: x.transpose(1, 3)),
    Row("aten::t", lambda x: x.t().t(), 8, ()),
    Row("aten::unsqueeze", lambda x: x.unsqueeze(2)),
    Row("aten::squeeze", lambda x: x.mean(2, keepdim=True).squeeze(2)),
    Row("aten::squeeze_", lambda x: x.mean(2, keepdim=True).squeeze_(2)),
    Row("aten::unsqueeze_", lambda x: x.clone().unsqueeze_(1)),
    Row("aten::transpose_", lambda x: x.clone().transpose_(1, 2)),
    Row("aten::unfold", lambda x: x.unfold(2, 2, 1)),
    Row("aten::unfold", lambda x: x.unfold(1, 2, 1), 0),
    Row("aten::as_strided", lambda x: x.as_strided(x.shape, x.stride())),
    Row("aten::as_strided", lambda x: x.as_strided((len(x), 2), (1, 1)), 0),
    Row("aten::cat", lambda x: torch.cat([x, x.sin()], 1)),
    Row("aten::cat", lambda x: torch.cat([x, x.sin()], 2)),
    Row("aten::cat", lambda x: torch.cat([x, torch.ones(2, 1, 4, 4).to(x)], 1)),
    Row("aten::stack", lambda x: torch.stack([x, x.sin()], 1).sum(1)),
    Row("aten::stack", lambda x: torch.stack([x, x.sin()], 2).flatten(1, 2)),
    Row("aten::split", lambda x: torch.add(*x.split(x.shape[1] // 2, 1)), 4),
    Row("aten::split", lambda x: torch.add(*x.chunk(2, 1)), 4),
    Row("aten::split", lambda x: torch.add(*x.split(4, 1)), 0),
    Row("aten::unsafe_split", lambda x: torch.add(*x.unsafe_split(x.shape[1] // 2, 1)), 4),
    Row("aten::unsafe_split_with_sizes", lambda x: x.unsafe_split_with_sizes([2, 6], 1)[1], 0),
    Row("aten::split_with_sizes", lambda x: x.split([2, 6], 1)[1], 0),
    Row("aten::split_with_sizes", lambda x: x.split([1, 3], 2)[1]),
    Row("aten::slice", lambda x: x[:, : x.shape[1] // 4] * 1, 2),
    Row("aten::slice", lambda x: x[:, 2:] * 1, 0),
    Row("aten::slice", lambda x: x[:, ::2] * 1, 0),
    Row("aten::slice", lambda x: x[:, :, 1:] * 1),
    Row("aten::glu", lambda x: F.glu(x, 1), 4),
    Row("aten::glu", lambda x: F.glu(x, 3)),
    Row("aten::unbind", lambda x: torch.stack(x.unbind(2), 2)),
    Row("aten::unbind", lambda x: torch.stack(x.unbind(1), 1), 0),
    Row("aten::select", lambda x: x[:, :, 0]),
    Row("aten::select", lambda x: x[:, 0], 0),
    Row("aten::index_select", lambda x: x.index_select(2, torch.tensor([0, 2]))),
    Row("aten::index_select", lambda x: x.index_select(1, torch.tensor([0, 2])), 0),
    Row("aten::gather", lambda x: x.gather(2, _at(x, 2)[:, :, :2])),
    Row("aten::gather", lambda x: x.gather(1, _at(x, 1)), 0),
    Row("aten::scatter", lambda x: x.scatter(2, _at(x, 2), x.sin())),
    Row("aten::scatter", lambda x: x.scatter(0, _at(x, 0), 0.5)),
    Row("aten::scatter_add", lambda x: x.scatter_add(2, _at(x, 2), x)),
    Row("aten::scatter_add_", lambda x: torch.ones_like(x).scatter_add_(1, _at(x, 1), x), 0),
    Row("aten::scatter_reduce", lambda x: x.scatter_reduce(3, _at(x, 3), x, "amax")),
    Row("aten::index_add", lambda x: x.index_add(0, torch.tensor([1, 0]), x)),
    Row("aten::index_add", lambda x: x.index_add(1, torch.tensor([1, 0]), x[:, :2]), 0),
    Row("aten::index_reduce", lambda x: x.index_reduce(2, torch.arange(4), x, "mean")),
    Row("aten::index_copy", lambda x: x.index_copy(2, torch.tensor([3, 1]), x[:, :, :2])),
    Row("aten::index_fill", lambda x: x.index_fill(2, torch.tensor([3, 1]), 0.5)),
    Row("aten::index_put", lambda x: x.index_put((torch.tensor([1, 1]),), x[:1], True)),
    Row("aten::index_put_", _put),
    Row("aten::index", lambda x: x[:, :, torch.tensor([0, 2])]),
    Row("aten::index", lambda x: x[:, :, torch.tensor([0, 2]), torch.tensor([1, 1])]),
    Row("aten::index", lambda x: x[torch.tensor([1, 0]), :, torch.tensor([0, 2])]),
    Row("aten::index", lambda x: x[:, torch.tensor([0, 2])], 0),
    Row("aten::index", lambda x: x[:, :, torch.ones(4, 4, dtype=torch.bool)], 0),
]


REDUCTIONS = [
    Row(f"aten::{name}", function, free)
    for name, function, free in [
        ("mean", lambda x: x.mean((2, 3)), 8),
        ("mean", lambda x: x.mean(1), 0),
        ("sum", lambda x: x.sum(-1), 8),
        ("sum", lambda x: x * x.sum(), 0),
        ("amax", lambda x: x.amax(2), 8),
        ("amin", lambda x: x.amin((2, 3), keepdim=True), 8),
        ("prod", lambda x: x.prod(2), 8),
        ("var", lambda x: x.var((2, 3)), 8),
        ("std", lambda x: x.std(2), 8),
        ("var_mean", lambda x: torch.var_mean(x, 2)[0], 8),
        ("std_mean", lambda x: torch.std_mean(x, 2)[1], 8),
        ("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, dim=(2, 3)), 8),
        ("linalg_vector_norm", lambda x: F.normalize(x, dim=1), 0),
        ("norm", lambda x: torch.ops.aten.norm(x, 2, [2]), 8),
        ("max", lambda x: x.max(2).values, 8),
        ("max", lambda x: x * x.max(1, keepdim=True)[0], 0),
        ("min", lambda x: x.min(3, keepdim=True).values, 8),
        ("argmax", lambda x: x.mean(2) + x.argmax(2), 8),
        ("argmin", lambda x: x.mean(2) + x.argmin(2), 8),
        ("all", lambda x: x.mean(2) + (x > 0).all(2), 8),
        ("any", lambda x: x.mean(2) + (x > 0).any(2), 8),
        ("logsumexp", lambda x: x.logsumexp(2), 8),
        ("median", lambda x: x.median(2).values, 8),
        ("kthvalue", lambda x: x.kthvalue(2, 2).values, 8),
        ("mode", lambda x: x.mode(2).values, 8),
        ("cummax", lambda x: x.cummax(2).values, 8),
        ("cummin", lambda x: x.cummin(3).values, 8),
        ("topk", lambda x: x.topk(2, 2).values, 8),
        ("topk", lambda x: x.topk(2, 1).values, 0),
        ("nansum", lambda x: x.nansum(2), 8),
        ("count_nonzero", lambda x: x.mean(2) + (x > 0).count_nonzero(2), 8),
        # without a derivative in torch 2.7
        ("aminmax", lambda x: torch.aminmax(x.detach(), dim=2)[1], 8),
        ("cumsum", lambda x: x.cumsum(2), 8),
        ("cumsum", lambda x: x.cumsum(1), 0),
        ("cumprod", lambda x: x.cumprod(3), 8),
        ("logcumsumexp", lambda x: x.logcumsumexp(2), 8),
        ("sort", lambda x: x.sort(2).values, 8),
        ("flip", lambda x: x.flip(2), 8),
        ("flip", lambda x: x.flip(1), 0),
        ("roll", lambda x: x.roll(1, 2), 8),
        ("roll", lambda x: x.roll(1), 0),
    ]
]
