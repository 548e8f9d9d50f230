"""Words: joining, cutting, reshaping, broadcasting, writing in place."""

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
    partners,
    pick,
    width,
    word,
)

JOINS = [torch.add, torch.mul, torch.sub, torch.maximum, lambda a, b: torch.where(a > 0, a, b)]


@word(2, 3, 4, weight=4)
def join(choices: Choices, x: Tensor, env: Env) -> Step:
    other = pick(choices, partners(env, x)[::-1])
    number = choices.integer(0, len(JOINS) - 1)
    return Step(f"join {number}", lambda _, a, b: JOINS[number](a, b), [other])


@word(4, weight=2)
def residual(choices: Choices, x: Tensor, _: Env) -> Step:
    c = x.shape[1]
    layer = nn.Sequential(
        nn.Conv2d(c, width(choices), 3, padding=1), nn.Sigmoid(), nn.LazyConv2d(c, 1)
    )
    layer(x.float())

    def run(step: Step, x: Tensor) -> Tensor:
        y = step.layer(x)
        return y.add_(x) if step.in_place else x + y

    return Step("residual", run, layer=layer, in_place=int(flip(choices)))


@word(2, 4, weight=3)
def concatenation(choices: Choices, x: Tensor, env: Env) -> Step:
    fitting = partners(env, x, axis=1)[::-1]
    others = [pick(choices, fitting) for _ in range(pick(choices, [1, 1, 2]))]
    return Step("cat", lambda _, *values: torch.cat(values, 1), others)


@word(2, 4)
def stacking(choices: Choices, x: Tensor, env: Env) -> Step:
    def run(step: Step, a: Tensor, b: Tensor) -> Tensor:
        both = torch.stack([a, b], step.axis)
        return (both * step.weight).sum(step.axis) if step.summed else both.flatten(1, 2)

    axis = pick(choices, [1, 2])
    weight = parameter(*[2 if i == axis else 1 for i in range(x.dim() + 1)])
    other = pick(choices, partners(env, x)[::-1])
    return Step("stack", run, [other], axis=axis, weight=weight, summed=int(flip(choices)))


@word(2, 4)
def with_itself(choices: Choices, x: Tensor, _: Env) -> Step:
    return Step("cat with itself", lambda _, x: torch.cat([x, torch.cos(x)], 1))


CUTS = [
    lambda x: x.chunk(2, 1),
    lambda x: x.split(x.shape[1] // 2, 1),
    lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
    lambda x: torch.tensor_split(x, 2, dim=1),
    lambda x: (x[:, ::2], x[:, 1::2]),
    lambda x: x.unflatten(1, (2, -1)).unbind(1),
]


@word(2, 4, weight=3)
def cutting(choices: Choices, x: Tensor, _: Env) -> Step | None:
    if x.shape[1] % 2 or x.shape[1] < 4:
        return None
    number = choices.integer(0, len(CUTS) - 1)
    return Step(f"cut {number}", lambda _, x: tuple(CUTS[number](x)))


@word(2, 4, harsh=True)
def cutting_by_number(choices: Choices, x: Tensor, _: Env) -> Step | None:
    c = x.shape[1]
    if c < 2:
        return None
    at = choices.integer(1, c - 1)

    def run(step: Step, x: Tensor) -> tuple[Tensor, ...]:
        if step.split:
            return tuple(x.split([step.at, step.size - step.at], 1))
        return x[:, : step.at], x[:, step.at :]

    return Step("cut by number", run, at=at, size=c, split=int(flip(choices)))


@word(2, 4)
def cutting_by_kept_sizes(choices: Choices, x: Tensor, _: Env) -> Step | None:
    c = x.shape[1]
    if c < 3:
        return None
    first = choices.integer(1, c - 2)
    second = choices.integer(1, c - first - 1)
    kind = list if flip(choices) else tuple
    sizes = kind([first, second, c - first - second])
    return Step(
        "cut by kept sizes", lambda step, x: x.split(step.split_sizes, 1), split_sizes=sizes
    )


@word(2, 4, harsh=True)
def reading_by_number(choices: Choices, x: Tensor, _: Env) -> Step:
    c = x.shape[1]
    index = torch.tensor([choices.integer(0, c - 1) for _ in range(3)])
    options = [
        lambda step, x: x[:, step.index],
        lambda step, x: x.index_select(1, step.index),
        lambda step, x: x[:, :1],
        lambda step, x: x[:, -1:] + x,
        lambda step, x: x.roll(1, 1),
        lambda step, x: x.flip(1),
        lambda step, x: x.cumsum(1),
        lambda step, x: x.softmax(1),
        lambda step, x: x - x.mean(1, keepdim=True),
        lambda step, x: x.amax(1, keepdim=True) * x,
        lambda step, x: F.normalize(x, dim=1),
        lambda step, x: x.topk(1, 1).values,
    ]
    number = choices.integer(0, len(options) - 1)
    return Step(f"by number {number}", options[number], index=index)


@word(4, weight=2)
def shuffle(choices: Choices, x: Tensor, _: Env) -> Step:
    n, c, h, w = x.shape
    groups = divisor(choices, c)
    options = [
        lambda x: (
            x.contiguous().view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        ),
        lambda x: (
            x.contiguous().view(len(x), groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        ),
        lambda x: F.channel_shuffle(x, groups),
        lambda x: x.reshape(n, -1, groups, h, w).permute(0, 2, 1, 3, 4).reshape(n, -1, h, w),
    ]
    number = choices.integer(0, len(options) - 1)
    return Step(f"shuffle {number}", lambda _, x: options[number](x), groups=groups)


@word(4, harsh=True)
def grouped_view(choices: Choices, x: Tensor, _: Env) -> Step:
    n, c, h, w = x.shape
    groups = divisor(choices, c)
    options = [
        lambda step, x: (x.contiguous().view(n, groups, -1, h, w) * step.scale).flatten(1, 2),
        lambda step, x: (x.contiguous().view(n, groups, c // groups, h, w) * step.scale).view(
            n, c, h, w
        ),
        lambda step, x: x.unflatten(1, (-1, groups)).mean(2),
        lambda step, x: x.unflatten(1, (groups, -1)).sum(1),
        lambda step, x: x.contiguous().view(n, c, h * w).view(n, c * h, w).view(n, c, h, w),
        lambda step, x: x.contiguous().view(n, c // groups, groups * h, w),
        lambda step, x: x.repeat_interleave(2, 1),
        lambda step, x: x.repeat(1, 2, 1, 1),
        lambda step, x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(n, -1, h, w),
    ]
    number = choices.integer(0, len(options) - 1)
    scale = parameter(groups, 1, 1, 1)
    return Step(f"view {number}", options[number], scale=scale, groups=groups)


@word(4)
def pixel_shuffle(choices: Choices, x: Tensor, _: Env) -> Step | None:
    if x.shape[1] % 4 == 0 and x.shape[2] < 8:
        return Step("pixel shuffle", lambda _, x: F.pixel_shuffle(x, 2))
    if x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0 and x.shape[1] < 8:
        return Step("pixel unshuffle", lambda _, x: F.pixel_unshuffle(x, 2))
    return None


@word(4, harsh=True)
def patches(choices: Choices, x: Tensor, _: Env) -> Step | None:
    if x.shape[1] > 4 or min(x.shape[2:]) < 2:
        return None
    return Step("unfold", lambda _, x: F.unfold(x, 2).transpose(1, 2))


@word(4, harsh=True)
def padding_of_channels(choices: Choices, x: Tensor, _: Env) -> Step:
    before, after = choices.integer(0, 2), choices.integer(0, 2)
    pad = (0, 0, 0, 0, before, after)
    return Step("pad channels", lambda _, x: F.pad(x, pad), before=before, after=after)


@word(4)
def own_scale(choices: Choices, x: Tensor, _: Env) -> Step:
    c = x.shape[1]
    options = [
        lambda step, x: x * step.scale,
        lambda step, x: x + step.scale,
        lambda step, x: x - step.mean,
        lambda step, x: torch.addcmul(step.scale, x, step.mean),
        lambda step, x: x * torch.tanh(step.scale).expand_as(x),
    ]
    mean = torch.rand(c, 1, 1, dtype=torch.float64)
    number = choices.integer(0, len(options) - 1)
    return Step(f"scale {number}", options[number], scale=parameter(c, 1, 1), mean=mean)


@word(4, harsh=True)
def writing_in_place(choices: Choices, x: Tensor, env: Env) -> Step:
    c = x.shape[1]
    at = choices.integer(0, c - 1)

    def into_a_slice(step: Step, x: Tensor, other: Tensor) -> Tensor:
        y = x.clone()
        y[:, : step.at] = other[:, : step.at]
        return y

    def into_zeros(step: Step, x: Tensor, other: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:])
        y[:, : x.shape[1]] = x
        y[:, x.shape[1] :] += other
        return y

    def into_zeros_of_a_fixed_size(step: Step, x: Tensor, other: Tensor) -> Tensor:
        y = torch.ones(x.shape[0], step.size + 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        y[:, : step.size] = x * other
        return y

    def scaled_half(step: Step, x: Tensor, other: Tensor) -> Tensor:
        y = x + other
        y[:, x.shape[1] // 2 :].mul_(2).add_(0.5)
        return y

    writers = [into_a_slice, into_zeros, into_zeros_of_a_fixed_size, scaled_half]
    writer = pick(choices, writers)
    other = pick(choices, partners(env, x)[::-1])
    return Step(writer.__name__, writer, [other], at=at, size=c)


@word(4, weight=2)
def to_vector(choices: Choices, x: Tensor, _: Env) -> Step:
    n, c, h, w = x.shape
    options = [
        lambda x: x.mean((2, 3)),
        lambda x: x.flatten(1),
        lambda x: x.contiguous().view(n, c * h * w),
        lambda x: x.amax((-1, -2)),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
        lambda x: x[:, :, 0, 0],
    ]
    number = choices.integer(0, len(options) - 1)
    return Step(f"to vector {number}", lambda _, x: options[number](x))


@word(4, weight=2)
def to_tokens(choices: Choices, x: Tensor, _: Env) -> Step:
    options = [
        lambda x: x.flatten(2).transpose(1, 2),
        lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1]),
    ]
    number = choices.integer(0, len(options) - 1)
    return Step(f"to tokens {number}", lambda _, x: options[number](x))


@word(3)
def class_token(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        tokens = torch.cat([step.token.expand(len(x), -1, -1), x], 1) + step.position
        return tokens[:, 0] if step.first else tokens

    t, c = x.shape[1:]
    token, position = parameter(1, 1, c), parameter(1, t + 1, c)
    return Step("class token", run, token=token, position=position, first=int(flip(choices)))


@word(3)
def to_image(choices: Choices, x: Tensor, _: Env) -> Step | None:
    side = int(x.shape[1] ** 0.5)
    if side * side != x.shape[1]:
        return Step("mean over tokens", lambda _, x: x.mean(1))
    return Step(
        "to image", lambda s, x: x.transpose(1, 2).unflatten(2, (s.side, s.side)), side=side
    )


@word(2)
def vector_to_image(choices: Choices, x: Tensor, _: Env) -> Step:
    options = [
        lambda step, x: step.layer(x).view(len(x), step.out, 2, 2),
        lambda step, x: step.layer(x).view(len(x), -1, 2, 2),
        lambda step, x: step.layer(x).unflatten(1, (2, 2, -1)).permute(0, 3, 1, 2),
    ]
    out = width(choices)
    number = choices.integer(0, len(options) - 1)
    layer = nn.Linear(x.shape[1], out * 4)
    return Step(f"to image {number}", options[number], layer=layer, out=out)


@word(4)
def gate_by_vector(choices: Choices, x: Tensor, env: Env) -> Step | None:
    fitting = [i for i, t in enumerate(env) if t.shape == x.shape[:2]]
    if not fitting:
        return None
    other = pick(choices, fitting[::-1])
    return Step("gate", lambda _, x, v: x * torch.sigmoid(v)[:, :, None, None], [other])
