"""Parameters that the forward pass itself writes into: they stay, and the analysis leaves them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    assert_same,
    random_mask,
    snapshot,
    train_a_step,
)


class Codebook(nn.Module):
    """The nearest code of each position; in training codes are moving averages of what they got."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(codes, width), requires_grad=False)
        self.register_buffer("sums", self.codes.data.clone())

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.transpose(1, 2), self.codes.expand(len(x), -1, -1)).argmin(-1)
        found = F.embedding(nearest, self.codes).transpose(1, 2)
        if self.training:
            hot = F.one_hot(nearest, len(self.codes)).to(x).flatten(0, 1)
            self.sums.mul_(0.9).add_(hot.t() @ x.transpose(1, 2).flatten(0, 1), alpha=0.1)
            for code, total in enumerate(self.sums / (hot.sum(0) + 1).unsqueeze(1)):
                self.codes.data[code] = total
        return x + (found - x).detach()


class Bounded(nn.Conv1d):
    """A convolution that bounds the norm of its filters before it runs, in place or not."""

    def __init__(self, *arguments: int, bound: Callable[[nn.Parameter], None]) -> None:
        super().__init__(*arguments)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        self.bound(self.weight)
        return super().forward(x)


def _assign(weight: nn.Parameter) -> None:
    weight.data = torch.renorm(weight.data, p=2, dim=0, maxnorm=0.3)


def _write(weight: nn.Parameter) -> None:
    weight.data.renorm_(2, 0, 0.3)


def _copy(weight: nn.Parameter) -> None:
    weight.data.copy_(weight.data.renorm(2, 0, 0.3))


def test_a_codebook_stays_and_the_rest_goes() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 12, 3), nn.ReLU(), nn.Conv1d(12, 8, 3), Codebook(5, 8),
        nn.Conv1d(8, 10, 3), nn.ReLU(), nn.Conv1d(10, 2, 1),
    ).double()  # fmt: skip
    x = torch.randn(2, 3, 14, dtype=torch.float64)
    before = snapshot(model)
    surgery = ChannelSurgery(model, x)
    assert_same(before, snapshot(model))
    assert [layer.num_channels for layer in surgery.layers] == [12, 10]
    why = {reason for name, *_, reason in surgery.frozen if name == "2.bias"}
    assert all("the forward pass writes into the parameter" in reason for reason in why)
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    assert_macs_exact(surgery, x, keep)
    surgery.apply(keep)
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.01))


@pytest.mark.parametrize("bound", [_assign, _write, _copy])
def test_filters_that_are_bounded_in_place_go(bound: Callable[[nn.Parameter], None]) -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ELU(), Bounded(8, 12, 3, bound=bound), nn.ELU(),
        Bounded(12, 2, 1, bound=bound),
    ).double()  # fmt: skip
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    before = snapshot(model)
    surgery = ChannelSurgery(model, x)
    assert_same(before, snapshot(model))
    assert [layer.num_channels for layer in surgery.layers] == [8, 12]
    for training in (False, True):
        assert_exact(surgery, x, random_mask(surgery), training=training)
    surgery.apply(random_mask(surgery))
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
