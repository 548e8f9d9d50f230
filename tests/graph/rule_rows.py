"""One row per op: something that runs it on a tensor of 8 channels, and what may go then.

To add an op: one function in ``graph/rules``, one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn

Middle = Callable[[Tensor], Tensor]

CHANNELS = 8


@dataclass(frozen=True)
class Row:
    """A network around an op.

    Attributes:
        op: the op that must be met.
        middle: a function, or a maker of a module, of (2, 8, *spatial) values.
        free: removable channels of the whole network; the stem alone has 8.
        spatial: sizes of the positions; with none the values are (2, 8).
    """

    op: str
    middle: Middle | type[nn.Module] | Callable[[], nn.Module]
    free: int = CHANNELS
    spatial: tuple[int, ...] = (4, 4)


def _conv(*arguments: int, **options: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*arguments, **options)  # type: ignore[arg-type]


class Own(nn.Module):
    """A parameter, or a buffer, used by a function."""

    def __init__(self, function: Callable[..., Tensor], tensor: Tensor, buffer: bool = False):
        super().__init__()
        self.function = function
        if buffer:
            self.register_buffer("own", tensor)
        else:
            self.own = nn.Parameter(tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.own)


def _own(function: Callable[..., Tensor], *shape: int, buffer: bool = False) -> Callable[[], Own]:
    return lambda: Own(function, torch.rand(shape) + 0.5, buffer)


def _written(x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape)
    y[:, : x.shape[1] // 2] = x[:, x.shape[1] // 2 :]
    return y


def _attention(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1).contiguous()  # one head
    return F.scaled_dot_product_attention(torch.ones_like(y), y, y)


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


def _math_attention(x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2).unsqueeze(0)  # strides that no fused kernel takes
    return F.scaled_dot_product_attention(torch.ones_like(y), y, y)[0]


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
    Row("aten::bmm", _own(lambda x, w: torch.einsum("nchw,cd->ndhw", x, w), 8, 6), 14),
    Row("aten::baddbmm", lambda x: torch.baddbmm(x, x, torch.ones(2, 4, 4).to(x)), 8, (4,)),
    Row("aten::mv", _own(lambda x, v: (x @ v)[:, None] + x[:, :1] * 0, 8), 0, ()),
    Row("aten::mv", _own(lambda x, v: (x @ v)[:, None], 8), 8, ()),
    Row("aten::dot", _own(lambda x, v: x * torch.dot(v, v), 6), 14),
    Row("aten::_trilinear", lambda: _Twice(nn.Bilinear(8, 8, 6)), 14, ()),
    Row("aten::embedding", Table, 8, ()),
    Row("aten::_weight_norm_interface", Normed, 6),
    Row("aten::_scaled_dot_product_flash_attention_for_cpu", _attention, 0),
    Row("aten::_safe_softmax", _math_attention, 0),
]


class _Twice(nn.Module):
    """Both arguments of a module are the same."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


NORMS = [
    Row("aten::native_batch_norm", lambda: nn.BatchNorm2d(8)),
    Row("aten::native_batch_norm", lambda: nn.BatchNorm2d(8, track_running_stats=False)),
    Row("aten::native_batch_norm", lambda: nn.BatchNorm1d(8), 8, ()),
    Row("aten::native_batch_norm", lambda: nn.InstanceNorm2d(8, affine=True)),
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

ELEMENTWISE = [
    Row("aten::relu", torch.relu),
    Row("aten::sigmoid", torch.sigmoid),
    Row("aten::exp", lambda x: torch.exp(-x)),
    Row("aten::cos", torch.cos),
    Row("aten::gelu", F.gelu),
    Row("aten::hardswish", F.hardswish),
    Row("aten::hardswish_", lambda x: F.hardswish(x + 0, inplace=True)),
    Row("aten::_prelu_kernel", lambda: nn.PReLU(8)),
    Row("aten::_prelu_kernel", lambda: nn.PReLU()),
    Row("aten::add", _own(torch.add, 8, 1, 1)),
    Row("aten::mul", _own(torch.mul, 8, 1, 1, buffer=True)),
    Row("aten::add", lambda x: x + torch.ones(8, 1, 1).to(x), 0),
    Row("aten::add", lambda x: x + x.mean(1, keepdim=True), 0),
    Row("aten::lerp", lambda x: torch.lerp(x, x.cos(), 0.5)),
    Row("aten::clamp", lambda x: x.clamp(-0.5, 0.5)),
    Row("aten::where", lambda x: torch.where(x > 0, x, x.new_tensor(0.25))),
    Row("aten::heaviside", lambda x: x * torch.heaviside(x.detach(), x.new_tensor(1.0))),
    Row("aten::masked_fill", lambda x: x.masked_fill(x > 0, 0.5)),
    Row("aten::fmod", lambda x: x.fmod(0.5)),
    Row("aten::floor_divide", lambda x: x * torch.floor_divide(x.detach(), 0.5)),
    Row("aten::complex", lambda x: torch.complex(x, x).abs()),
    Row("aten::polar", lambda x: torch.polar(x.abs(), x).abs()),
    Row("aten::_conj", lambda x: torch.complex(x, x).conj().abs()),
    Row("aten::copy_", _written, 4),
    Row("aten::clone", lambda x: x.clone()),
    Row("aten::detach", lambda x: x + x.detach()),
    Row("aten::alias", lambda x: torch.ops.aten.alias(x)),
    Row("aten::_to_copy", lambda x: x.float().double()),
    Row("aten::fill_", lambda x: x + torch.empty_like(x).fill_(0.5)),
    Row("aten::zero_", lambda x: x + torch.empty_like(x).zero_()),
    Row("aten::lift_fresh", lambda x: x * torch.tensor(2.0)),
    Row("aten::normal_", lambda x: x + 0 * torch.empty_like(x).normal_()),
    Row("aten::uniform_", lambda x: x + 0 * torch.empty_like(x).uniform_()),
    Row("aten::exponential_", lambda x: x + 0 * torch.empty_like(x).exponential_()),
    Row("aten::random_", lambda x: x + 0 * torch.empty_like(x).random_(3)),
    Row("aten::bernoulli_", lambda: nn.Dropout2d(0.5)),
    Row("aten::native_dropout", lambda x: torch.ops.aten.native_dropout(x, 0.5, False)[0]),
]

CREATION = [
    Row("aten::zeros", lambda x: x + torch.zeros(x.shape[1], 1, 1).to(x)),
    Row("aten::ones", lambda x: x * torch.ones(x.shape[1:]).to(x)),
    Row("aten::ones", lambda x: x * torch.ones(8, 1, 1).to(x), 0),
    Row("aten::full", lambda x: x + torch.full((x.shape[1], 1, 1), 0.5).to(x)),
    Row("aten::rand", lambda x: x + 0 * torch.rand(x.shape).to(x)),
    Row("aten::randn", lambda x: x + 0 * torch.randn(x.shape).to(x)),
    Row("aten::new_zeros", lambda x: x + x.new_zeros(x.shape)),
    Row("aten::new_ones", lambda x: x + x.new_ones(x.shape[1], 1, 1)),
    Row("aten::new_full", lambda x: x + x.new_full((x.shape[1], 1, 1), 2.0)),
    Row("aten::new_empty", lambda x: x.new_empty(x.shape).copy_(x)),
    Row("aten::empty", lambda x: torch.empty(x.shape, dtype=x.dtype).copy_(x)),
    Row("aten::empty_like", lambda x: torch.empty_like(x).copy_(x)),
    Row("aten::zeros_like", lambda x: x + torch.zeros_like(x)),
    Row("aten::ones_like", lambda x: x + torch.ones_like(x)),
    Row("aten::full_like", lambda x: x + torch.full_like(x, 2.0)),
    Row("aten::rand_like", lambda x: x + 0 * torch.rand_like(x)),
    Row("aten::randint_like", lambda x: x + 0 * torch.randint_like(x, 3)),
    Row("aten::randn_like", lambda x: x + 0 * torch.randn_like(x)),
]

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
    Row("aten::unbind", lambda x: torch.stack(x.unbind(2), 2)),
    Row("aten::unbind", lambda x: torch.stack(x.unbind(1), 1), 0),
    Row("aten::select", lambda x: x[:, :, 0]),
    Row("aten::select", lambda x: x[:, 0], 0),
    Row("aten::index_select", lambda x: x.index_select(2, torch.tensor([0, 2]))),
    Row("aten::index_select", lambda x: x.index_select(1, torch.tensor([0, 2])), 0),
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
        ("nansum", lambda x: x.nansum(2), 8),
        ("count_nonzero", lambda x: x.mean(2) + (x > 0).count_nonzero(2), 8),
        ("aminmax", lambda x: torch.aminmax(x, dim=2)[1], 8),
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


S1, S2, S3 = (6,), (4, 4), (4, 4, 4)

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
    Row("aten::fractional_max_pool2d", lambda x: F.fractional_max_pool2d(x, 2, 2), 0),
    Row("aten::fractional_max_pool3d", lambda x: F.fractional_max_pool3d(x, 2, 2), 0, S3),
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

ROWS = [*CONTRACTIONS, *NORMS, *ELEMENTWISE, *CREATION, *SHAPES, *REDUCTIONS, *SPATIAL]
