"""Sizes that a module keeps as a list, and splits its channels into, shrink with the channels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery, PruningPlan
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    random_mask,
    randomise,
    train_a_step,
)


class Gated(nn.Module):
    """A gate, channels as they are, channels that are convolved (as in MambaOut)."""

    def __init__(self, kind: Any = tuple, name: str = "split_indices") -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 24, 1), nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.last = nn.Conv2d(12, 4, 1)
        self.sizes_are_in = name
        setattr(self, name, kind([12, 7, 5]))

    def forward(self, x: Tensor) -> Tensor:
        sizes = getattr(self, self.sizes_are_in)
        gate, kept, convolved = torch.split(self.first(x), sizes, dim=1)
        return self.last(gate.sigmoid() * torch.cat([kept, self.conv(convolved)], 1))


@pytest.mark.parametrize("kind", [list, tuple])
def test_they_are_rewritten(kind: type) -> None:
    model, x = Gated(kind), torch.rand(2, 3, 6, 6)
    randomise(model)
    fresh = copy.deepcopy(model)
    surgery = ChannelSurgery(model, x)
    assert sorted(layer.num_channels for layer in surgery.layers) == [5, 7]
    keep = random_mask(surgery)
    assert_macs_exact(surgery, x, keep)
    assert_exact(surgery, x, keep, training=True)
    assert model.split_indices == kind([12, 7, 5])
    plan = surgery.apply(keep)
    sizes = [int(surgery.counts(keep)[i]) for i in (0, 1)]
    assert type(model.split_indices) is kind
    assert list(model.split_indices) == [sum(sizes), *sizes]
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
    PruningPlan.from_state_dict(plan.state_dict()).apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_a_list_of_another_name_is_nobodys_size() -> None:
    model = Gated(name="strides")
    surgery = ChannelSurgery(model, torch.rand(2, 3, 6, 6))
    assert not surgery.layers
    assert any(
        name == "first.weight" and "as one group" in why for name, _, _, why in surgery.frozen
    )


class Halves(nn.Module):
    """Keeps a list of its sizes, and does not go by it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(8, 3)
        self.split_sizes = [8, 8]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        half = x.shape[1] // 2
        a, b = x.split([half, x.shape[1] - half], 1)
        return self.last(a * b)


def test_a_list_that_nobody_reads_does_no_harm() -> None:
    model, x = Halves(), torch.rand(2, 6)
    randomise(model)
    surgery = ChannelSurgery(model, x)
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    surgery.apply(keep)
    assert sum(model.split_sizes) == model.first.out_features
