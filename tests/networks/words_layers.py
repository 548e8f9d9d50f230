"""Words: convolutions, linear maps, normalisations, activations, attention, pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.steps import (
    Choices,
    Env,
    Step,
    divisor,
    flip,
    parameter,
    pick,
    width,
    word,
)


def _call(step: Step, x: Tensor) -> Tensor:
    return step.layer(x)


@word(4, weight=5)
def convolution(choices: Choices, x: Tensor, _: Env) -> Step:
    c, out = x.shape[1], width(choices)
    kernel, dilation = pick(choices, [(1, 1), (3, 1), (3, 2), (1, 1)])
    stride = pick(choices, [1, 1, 2]) if x.shape[2] > 2 else 1
    layer = nn.Conv2d(
        c, out, kernel, stride, dilation * (kernel // 2), dilation, bias=flip(choices)
    )
    return Step("convolution", _call, layer=layer)


@word(4, weight=2)
def convolution_and_norm_in_place(choices: Choices, x: Tensor, _: Env) -> Step:
    out = width(choices)
    act = pick(choices, [nn.ReLU, nn.SiLU, nn.Hardswish, nn.ELU, nn.Hardsigmoid])
    layer = nn.Sequential(
        nn.Conv2d(x.shape[1], out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        act(inplace=True),
    )
    return Step("conv-norm-act", _call, layer=layer)


@word(4, weight=2)
def grouped_convolution(choices: Choices, x: Tensor, _: Env) -> Step:
    c = x.shape[1]
    groups = divisor(choices, c)
    out = groups * pick(choices, [1, 2, 3])
    layer = nn.Conv2d(c, out, 3, padding=1, groups=groups, bias=flip(choices))
    return Step("grouped convolution", _call, layer=layer)


@word(4)
def transposed_convolution(choices: Choices, x: Tensor, _: Env) -> Step | None:
    c = x.shape[1]
    if x.shape[2] > 6:
        return None
    groups = divisor(choices, c) if flip(choices) else 1
    out = groups * pick(choices, [1, 2, 4])
    layer = nn.ConvTranspose2d(c, out, 2, 2, groups=groups, bias=flip(choices))
    return Step("transposed convolution", _call, layer=layer)


@word(4)
def convolution_by_hand(choices: Choices, x: Tensor, _: Env) -> Step:
    """A weight standardised before it is used, and a bias added by broadcasting."""

    def run(step: Step, x: Tensor) -> Tensor:
        weight = step.weight - step.weight.mean((1, 2, 3), keepdim=True)
        if step.standard:
            weight = weight / (step.weight.std((1, 2, 3), keepdim=True) + 1)
        return F.conv2d(x, weight) + step.shift

    out = width(choices)
    weight = nn.Parameter(torch.randn(out, x.shape[1], 1, 1).double() + 0.5)
    return Step(
        "standardised", run, weight=weight, shift=parameter(out, 1, 1), standard=int(flip(choices))
    )


@word(2, 3, weight=3)
def linear(choices: Choices, x: Tensor, _: Env) -> Step:
    layer = nn.Linear(x.shape[-1], width(choices), bias=flip(choices))
    return Step("linear", _call, layer=layer)


@word(4)
def linear_on_the_last_dimension(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        return step.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return Step("linear over channels", run, layer=nn.Linear(x.shape[1], width(choices)))


@word(4)
def einsum(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        return torch.einsum("nchw,cd->ndhw", x, step.weight)

    return Step("einsum", run, weight=parameter(x.shape[1], width(choices)))


@word(2)
def multiplication_by_a_buffer(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        return x @ step.table

    return Step("buffer", run, table=torch.rand(x.shape[-1], width(choices), dtype=torch.float64))


@word(2)
def bilinear(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        return step.layer(x, torch.tanh(x))

    return Step("bilinear", run, layer=nn.Bilinear(x.shape[1], x.shape[1], width(choices)))


@word(4, weight=3)
def normalisation(choices: Choices, x: Tensor, _: Env) -> Step:
    c = x.shape[1]
    norms = [
        lambda: nn.BatchNorm2d(c),
        lambda: nn.BatchNorm2d(c, affine=False),
        lambda: nn.BatchNorm2d(c, track_running_stats=False),
        lambda: nn.GroupNorm(divisor(choices, c), c),
        lambda: nn.GroupNorm(c, c),
        lambda: nn.GroupNorm(1, c),
        lambda: nn.LayerNorm(list(x.shape[1:])),
    ]
    if x.shape[2:].numel() > 1:  # of one number there are no statistics
        norms.append(
            lambda: nn.InstanceNorm2d(c, affine=flip(choices), track_running_stats=flip(choices))
        )
    return Step("normalisation", _call, layer=pick(choices, norms)())


@word(4, harsh=True)
def layer_norm_over_channels(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        return step.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    kind = pick(choices, [nn.LayerNorm, nn.RMSNorm] if hasattr(nn, "RMSNorm") else [nn.LayerNorm])
    return Step("layer norm over channels", run, layer=kind(x.shape[1]))


@word(2, 3, harsh=True)
def norm_of_vectors(choices: Choices, x: Tensor, _: Env) -> Step:
    if x.dim() == 2 and flip(choices):
        return Step("batch norm 1d", _call, layer=nn.BatchNorm1d(x.shape[1]))
    return Step("layer norm", _call, layer=nn.LayerNorm(x.shape[-1]))


FUNCTIONS = [
    torch.relu,
    torch.sigmoid,
    torch.cos,
    F.softplus,
    F.hardsigmoid,
    torch.tanh,
    F.gelu,
    F.mish,
    lambda x: torch.exp(-x * x),
    lambda x: 1 - x,
    lambda x: x * x.abs().clamp(max=2) + 0.5,
    lambda x: F.leaky_relu(x, 0.1),
    lambda x: x.masked_fill(x < 0, 0.25),
    lambda x: torch.where(x > 0, x, x.new_tensor(0.5)),
    lambda x: F.relu(x.clone(), inplace=True).add_(1),
    lambda x: x.detach() * 0.5 + x,
    lambda x: F.logsigmoid(x),
    lambda x: torch.lerp(x, torch.ones_like(x), 0.3),
    lambda x: torch.zeros_like(x).copy_(x),
    lambda x: x + torch.ones(x.shape[1:], dtype=x.dtype, device=x.device),
]


@word(2, 3, 4, weight=4)
def activation(choices: Choices, x: Tensor, _: Env) -> Step:
    number = choices.integer(0, len(FUNCTIONS) - 1)
    function = FUNCTIONS[number]
    return Step(f"activation {number}", lambda _, x: function(x))


@word(2, 4)
def prelu(choices: Choices, x: Tensor, _: Env) -> Step:
    return Step("prelu", _call, layer=nn.PReLU(pick(choices, [x.shape[1], 1])))


@word(2, 4)
def gated(choices: Choices, x: Tensor, _: Env) -> Step | None:
    if x.shape[1] % 2:
        return None
    return Step("glu", lambda _, x: F.glu(x, 1))


@word(2, 3, 4)
def dropout(choices: Choices, x: Tensor, _: Env) -> Step:
    layer = nn.Dropout2d(0.3) if x.dim() == 4 else nn.Dropout(0.3)
    return Step("dropout", _call, layer=layer)


@word(4)
def squeeze_excite(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(step.up(torch.relu(step.down(scale))))

    c, inner = x.shape[1], width(choices)
    return Step("squeeze-excite", run, down=nn.Conv2d(c, inner, 1), up=nn.Conv2d(inner, c, 1))


@word(4, weight=2)
def resampling(choices: Choices, x: Tensor, _: Env) -> Step | None:
    if x.shape[2] < 4:
        return Step("nearest", lambda _, x: F.interpolate(x, scale_factor=2.0))
    options = [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False),
        lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: F.pad(x, (1, 1, 0, 2), mode="reflect"),
        lambda x: F.pad(x, (1, 0, 0, 1), value=0.5),
        lambda x: F.adaptive_max_pool2d(x, (3, 2)),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
    ]
    number = choices.integer(0, len(options) - 1)
    return Step(f"resampling {number}", lambda _, x: options[number](x))


@word(4)
def attention_over_positions(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        q, k, v = step.q(x).flatten(2), step.k(x).flatten(2), step.v(x).flatten(2)
        scores = torch.softmax(q.transpose(1, 2) @ k, -1)
        return (v @ scores.transpose(1, 2)).view(len(x), -1, *x.shape[2:])

    inner, out, c = width(choices), width(choices), x.shape[1]
    q, k = nn.Conv2d(c, inner, 1), nn.Conv2d(c, inner, 1)
    return Step("attention", run, q=q, k=k, v=nn.Conv2d(c, out, 1))


@word(3)
def attention_with_heads(choices: Choices, x: Tensor, _: Env) -> Step:
    """One projection for q, k, v; the sizes of the heads are numbers, or are computed."""

    def run(step: Step, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        size = -1 if step.computed else step.head_dim
        qkv = step.qkv(x).reshape(n, t, 3, step.num_heads, size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if step.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v
        return step.out(mixed.transpose(1, 2).flatten(2))

    heads, size = pick(choices, [2, 4]), pick(choices, [2, 3, 4])
    return Step(
        "heads", run, qkv=nn.Linear(x.shape[-1], 3 * heads * size),
        out=nn.Linear(heads * size, width(choices)), num_heads=heads, head_dim=size,
        computed=int(flip(choices)), fused=int(flip(choices)),
    )  # fmt: skip


@word(3, harsh=True)
def transformer_layer(choices: Choices, x: Tensor, _: Env) -> Step:
    c = x.shape[-1]
    heads = divisor(choices, c)
    if flip(choices):
        layer = nn.TransformerEncoderLayer(c, heads, 2 * c, 0.1, batch_first=True)
        return Step("transformer layer", _call, layer=layer)

    def run(step: Step, x: Tensor) -> Tensor:
        return step.layer(x, x, x, need_weights=bool(step.weights))[0]

    layer = nn.MultiheadAttention(c, heads, batch_first=True)
    return Step("multi-head attention", run, layer=layer, weights=int(flip(choices)))


@word(3)
def convolution_1d(choices: Choices, x: Tensor, _: Env) -> Step:
    """(N, T, C) read as (N, C, T) sequences."""

    def run(step: Step, x: Tensor) -> Tensor:
        return step.layer(x.transpose(1, 2)).transpose(1, 2)

    return Step("1d", run, layer=nn.Conv1d(x.shape[-1], width(choices), 3, padding=1))
