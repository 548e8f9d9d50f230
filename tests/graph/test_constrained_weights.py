"""Weights that are divided by a norm or bounded by one: what is zero adds nothing to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lightning_slimga import ChannelSurgery
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    random_mask,
    randomise,
    train_a_step,
)

Constraint = Callable[[nn.Module], nn.Module]


class MaxNorm(nn.Module):
    """A parametrization that bounds the norm of each filter."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.renorm(weight, p=2, dim=0, maxnorm=0.7)


def _with_bounded_filters(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", MaxNorm())


class Bounded(nn.Conv1d):
    """Filters are bounded as the layer runs; the parameter itself is not written into."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight.renorm(2, 0, 0.7), self.bias)


CONSTRAINTS: dict[str, Constraint] = {
    "weight norm": parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "max norm": _with_bounded_filters,
}


def _check(model: nn.Module, example: Tensor, share: float = 0.5) -> ChannelSurgery:
    """Exact in both modes, counted, trainable afterwards, and more than a share can go."""
    randomise(model)
    before = sum(p.numel() for p in model.parameters())
    surgery = ChannelSurgery(model, example)
    assert surgery.params(random_mask(surgery, share=0.0)) < (1 - share) * before
    for seed in range(2):
        keep = random_mask(surgery, seed)
        assert_exact(surgery, example, keep)
        assert_exact(surgery, example, keep, training=True)
        assert_macs_exact(surgery, example, keep)
    optimizer = torch.optim.Adam(model.parameters())
    surgery.apply(keep, [optimizer])
    train_a_step(model, example, optimizer)
    return surgery


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_chains_of_constrained_convolutions(name: str) -> None:
    constrained = CONSTRAINTS[name]
    model = nn.Sequential(
        constrained(nn.Conv1d(4, 16, 3)),
        nn.ReLU(),
        constrained(nn.Conv1d(16, 24, 3, dilation=2)),
        nn.SiLU(),
        nn.Conv1d(24, 12, 1),
        nn.Sigmoid(),
        constrained(nn.ConvTranspose1d(12, 8, 2)),
        nn.ReLU(),
        nn.Conv1d(8, 2, 1),
    ).double()
    surgery = _check(model, torch.randn(2, 4, 20, dtype=torch.float64), share=0.9)
    assert [layer.num_channels for layer in surgery.layers] == [16, 24, 12, 8]


def test_an_eeg_network_with_bounded_filters() -> None:
    bounded = _with_bounded_filters
    model = nn.Sequential(
        nn.Conv2d(1, 8, (1, 7), padding=(0, 3), bias=False),
        nn.BatchNorm2d(8),
        bounded(nn.Conv2d(8, 16, (6, 1), groups=8, bias=False)),
        nn.BatchNorm2d(16),
        nn.ELU(),
        nn.AvgPool2d((1, 4)),
        nn.Conv2d(16, 16, (1, 5), groups=16, padding=(0, 2), bias=False),
        nn.Conv2d(16, 12, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ELU(),
        nn.Flatten(),
        bounded(nn.Linear(12 * 5, 4)),
    ).double()
    surgery = _check(model, torch.randn(2, 1, 6, 20, dtype=torch.float64))
    assert sorted(layer.num_channels for layer in surgery.layers) == [8, 12]


def test_bounds_that_a_layer_sets_itself() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), Bounded(8, 12, 3), nn.Tanh(), Bounded(12, 2, 1)
    ).double()
    _check(model, torch.randn(2, 3, 9, dtype=torch.float64))


class Cosine(nn.Linear):
    """Vectors and weights of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


def test_lengths_of_vectors_that_masking_makes_zero() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten(), Cosine(56, 12), nn.ReLU(), Cosine(12, 2)
    ).double()
    surgery = _check(model, torch.randn(2, 3, 9, dtype=torch.float64))
    assert [layer.num_channels for layer in surgery.layers] == [8, 12]


@pytest.mark.parametrize("function", [torch.sigmoid, lambda x: x + 1, lambda x: x.exp()])
def test_lengths_of_vectors_that_masking_does_not_make_zero(
    function: Callable[[Tensor], Tensor],
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.normalize(function(self.first(x)), dim=1))

    surgery = ChannelSurgery(Scaled().double(), torch.randn(4, 3, dtype=torch.float64))
    assert not surgery.layers
    assert any("reduced over this dimension" in reason for *_, reason in surgery.frozen)


def test_zeros_that_somebody_writes_over() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y[:2].fill_(1.0)
            return self.last(y / y.sum(1, keepdim=True))

    surgery = ChannelSurgery(Written().double(), torch.randn(4, 3, dtype=torch.float64))
    assert not surgery.layers
