"""Rows: convolutions, products, attention, normalisations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn

from tests.graph.rows.row import CHANNELS, Row, own


def _conv(*arguments: int, **options: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*arguments, **options)  # type: ignore[arg-type]


def _attention(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1).contiguous()  # one head
    return F.scaled_dot_product_attention(torch.ones_like(y), y, y)


def _math_attention(x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2).unsqueeze(0)  # strides that no fused kernel takes
    return F.scaled_dot_product_attention(torch.ones_like(y), y, y)[0]


class Deformed(nn.Module):
    """A deformable convolution with learnt offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(CHANNELS, 18, 3, padding=1)
        self.layer = torchvision.ops.DeformConv2d(CHANNELS, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.offsets(x))


class Table(nn.Module):
    """Channels looked up in an embedding are added."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.tensor([1, 3]))


class Normed(nn.Module):
    """A weight divided by its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(CHANNELS, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def _layer_norm_last(x: Tensor) -> Tensor:
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)


def _packed(x: Tensor) -> Tensor:
    sequences, lengths = x.transpose(1, 2), torch.tensor([5, 3])
    return nn.utils.rnn.pack_padded_sequence(sequences, lengths, batch_first=True).data


def _batch_norm_of_rows(x: Tensor) -> Tensor:
    return F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2)


class _Twice(nn.Module):
    """Both arguments of a module are the same."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


CONTRACTIONS = [
    Row("aten::convolution", _conv(8, 6, 3), 14),
    Row("aten::convolution", _conv(8, 8, 3, groups=8), 8),
    Row("aten::convolution", _conv(8, 16, 3, groups=8), 8),
    Row("aten::convolution", _conv(8, 6, 3, groups=2), 4 + 3),
    Row("aten::convolution", _conv(8, 8, 3, groups=4), 4),
    Row("aten::convolution", lambda: nn.ConvTranspose2d(8, 6, 2, 2), 14),
    Row("aten::convolution", lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=8), 8),
    Row("aten::convolution", lambda: nn.ConvTranspose2d(8, 6, 2, 2, groups=2), 4 + 3),
    Row("aten::convolution", lambda: nn.Conv1d(8, 6, 3), 14, (5,)),
    Row("aten::convolution", lambda: nn.Conv3d(8, 6, 2), 14, (3, 3, 3)),
    Row("torchvision::deform_conv2d", Deformed, 8 + 6),
    Row("aten::mm", lambda: nn.Linear(8, 6, bias=False), 14, ()),
    Row("aten::addmm", lambda: nn.Linear(8, 6), 14, ()),
    Row("aten::bmm", own(lambda x, w: torch.einsum("nchw,cd->ndhw", x, w), 8, 6), 14),
    Row("aten::baddbmm", lambda x: torch.baddbmm(x, x, torch.ones(2, 4, 4).to(x)), 8, (4,)),
    Row("aten::mv", own(lambda x, v: (x @ v)[:, None] + x[:, :1] * 0, 8), 0, ()),
    Row("aten::mv", own(lambda x, v: (x @ v)[:, None], 8), 8, ()),
    Row("aten::dot", own(lambda x, v: x * torch.dot(v, v), 6), 14),
    Row("aten::_trilinear", lambda: _Twice(nn.Bilinear(8, 8, 6)), 14, ()),
    Row("aten::embedding", Table, 8, ()),
    Row("aten::_pack_padded_sequence", _packed, 8, (5,)),
    Row("aten::_weight_norm_interface", Normed, 14),
    Row("aten::renorm", lambda x: x.renorm(2, 0, 0.5), 0),
    Row("aten::renorm", own(lambda x, w: F.conv2d(x, w.renorm(2, 0, 0.5)), 6, 8, 1, 1), 14),
    Row("aten::_euclidean_dist", own(torch.cdist, 30, 8), 30, ()),
    Row("aten::_cdist_forward", own(lambda x, w: torch.cdist(x, w, p=1.0), 5, 8), 5, ()),
    Row("aten::vdot", own(lambda x, v: x * torch.vdot(v, v), 6), 14),
    Row("aten::_scaled_dot_product_flash_attention_for_cpu", _attention, 0),
    Row("aten::_safe_softmax", _math_attention, 0),
]


NORMS = [
    Row("aten::native_batch_norm", lambda: nn.BatchNorm2d(8)),
    Row("aten::native_batch_norm", lambda: nn.BatchNorm2d(8, track_running_stats=False)),
    Row("aten::native_batch_norm", lambda: nn.BatchNorm1d(8), 8, ()),
    Row("aten::native_batch_norm", lambda: nn.InstanceNorm2d(8, affine=True)),
    Row("aten::native_batch_norm", _batch_norm_of_rows, 0),
    Row("aten::native_group_norm", lambda: nn.GroupNorm(4, 8), 4),
    Row("aten::native_group_norm", lambda: nn.GroupNorm(8, 8)),
    Row("aten::native_group_norm", lambda: nn.GroupNorm(1, 8), 0),
    Row("aten::native_layer_norm", lambda: nn.LayerNorm([8, 4, 4]), 0),
    Row("aten::native_layer_norm", lambda: nn.LayerNorm(4)),
    Row("aten::native_layer_norm", lambda: _layer_norm_last, 0),
    Row("aten::_softmax", lambda x: x.softmax(1), 0),
    Row("aten::_softmax", lambda x: x.softmax(2)),
    Row("aten::_log_softmax", lambda x: x.log_softmax(-1)),
]
