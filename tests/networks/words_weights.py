"""Words: weights under norms, recurrent layers, messages between samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.steps import Choices, Env, Step, flip, pick, width, word


def _call(step: Step, x: Tensor) -> Tensor:
    return step.layer(x)


class MaxNorm(nn.Module):
    """Filters whose norm is larger than a number are scaled down."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.renorm(weight, 2, 0, 0.5)


@word(4)
def convolution_of_a_norm(choices: Choices, x: Tensor, _: Env) -> Step | None:
    """The weight is divided by its norm, or by its largest singular value, or bounded."""
    if x.shape[1] == 1:
        return None
    layer = nn.Conv2d(x.shape[1], width(choices), pick(choices, [1, 3]), padding="same").double()
    number = choices.integer(0, 4)
    if number == 0:
        nn.utils.parametrizations.weight_norm(layer)
    elif number == 1:
        nn.utils.parametrizations.weight_norm(layer, dim=None)
    elif number == 2:
        nn.utils.parametrizations.spectral_norm(layer)
    elif number == 3:
        nn.utils.spectral_norm(layer)
    else:
        nn.utils.parametrize.register_parametrization(layer, "weight", MaxNorm())
    return Step(f"norm {number}", _call, layer=layer)


@word(2, 4)
def cosine_to_rows(choices: Choices, x: Tensor, _: Env) -> Step:
    """Both vectors and weights have length 1."""

    def run(step: Step, x: Tensor) -> Tensor:
        weight = F.normalize(step.weight, dim=1)
        return torch.einsum("nc...,oc->no...", F.normalize(x, dim=1), weight)

    weight = nn.Parameter(torch.randn(width(choices), x.shape[1], dtype=torch.float64))
    return Step("cosine", run, weight=weight)


@word(3)
def recurrent(choices: Choices, x: Tensor, _: Env) -> Step:
    def run(step: Step, x: Tensor) -> Tensor:
        return step.layer(x)[0]

    kind = pick(choices, [nn.GRU, nn.LSTM, nn.RNN])
    layer = kind(
        x.shape[-1], width(choices), choices.integer(1, 2), bias=not flip(choices),
        batch_first=flip(choices), bidirectional=flip(choices),
    )  # fmt: skip
    return Step("recurrent", run, layer=layer)


@word(2)
def recurrent_cell(choices: Choices, x: Tensor, _: Env) -> Step:
    layer = pick(choices, [nn.GRUCell, nn.RNNCell])(x.shape[-1], width(choices))
    return Step("cell", lambda step, x: step.layer(x, step.layer(x)), layer=layer)


MESSAGES = [
    lambda x, i: torch.zeros_like(x).index_add_(0, i, x),
    lambda x, i: x.new_zeros(x.shape).scatter_add_(0, _over(x, i), x),
    lambda x, i: torch.zeros_like(x).scatter_reduce(0, _over(x, i), x, "mean", include_self=False),
    lambda x, i: x.gather(0, _over(x, i)),
    lambda x, i: x.index_copy(0, i, x.sin()),
    lambda x, i: x.index_put((i,), x.sin(), accumulate=True),
    lambda x, i: x.index_reduce(0, i, x, "amax"),
]


def _over(x: Tensor, index: Tensor) -> Tensor:
    """One index for all channels of a node."""
    return index.view(-1, *[1] * (x.dim() - 1)).expand_as(x)


@word(2, 3, 4)
def messages(choices: Choices, x: Tensor, _: Env) -> Step:
    """Samples read and write each other, as nodes of a graph do."""
    number = choices.integer(0, len(MESSAGES) - 1)
    index = torch.arange(len(x)).flip(0)
    return Step(f"messages {number}", lambda step, x: MESSAGES[number](x, step.at), at=index)
