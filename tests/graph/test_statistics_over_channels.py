"""Batch norms whose statistics are taken over channels, in training at least."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from tests.networks.checks import assert_exact, random_mask, train_a_step


class Tokens(nn.Module):
    """A batch norm of tokens: in training its statistics are taken over features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 20), nn.Linear(20, 4)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.norm(self.stem(x)))))


class Standardised(nn.Conv2d):
    """Each filter has mean 0 and variance 1, by a batch norm of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


def _standardised() -> nn.Module:
    return nn.Sequential(
        Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 2, 1)
    ).double()


def test_features_under_a_batch_norm_of_tokens_stay() -> None:
    model, x = Tokens().double(), torch.randn(5, 6, 8, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert [layer.num_channels for layer in surgery.layers] == [20]
    for training in (False, True):
        assert_exact(surgery, x, random_mask(surgery), training=training)


@pytest.mark.parametrize(("allowed", "sizes"), [(False, [12]), (True, [8, 12])])
def test_standardised_weights(allowed: bool, sizes: list[int]) -> None:
    model, x = _standardised(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    surgery = ChannelSurgery(model, x, allow_approximate=allowed)
    assert [layer.num_channels for layer in surgery.layers] == sizes
    assert any("approximate" in note for note in surgery.notes) == allowed
    if not allowed:
        assert_exact(surgery, x, random_mask(surgery), training=True)
    surgery.apply(random_mask(surgery))
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
