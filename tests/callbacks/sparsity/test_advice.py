"""Whoever follows the advice sees γ move."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_slimga import SparsityCallback
from tests.fits.sparsity_net import Net, gammas, trainer


class Pushing(Net):
    """The loss drives γ away from zero, with noise."""

    def __init__(self, make: Any, scale: float) -> None:
        super().__init__()
        self.make, self.scale = make, scale
        self.noise = torch.Generator().manual_seed(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        push = 1 + 0.5 * torch.randn(4, generator=self.noise)
        return -self.scale * ((self.body[1].weight + self.side.weight) * push).sum()

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "slow sgd": lambda p: torch.optim.SGD(p, lr=1e-4),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0),
}


def advice(caught: Any) -> float:
    found = [re.search(r"Try `strength=([\d.e+-]+)`", str(w.message)) for w in caught]
    (number,) = [match.group(1) for match in found if match]
    return float(number)


@pytest.mark.parametrize("scale", [1e-3, 1e-1])
@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_who_follows_it_sees_them_move(name: str, proximal: bool, scale: float) -> None:
    def fit(strength: float) -> Tensor:
        net = Pushing(OPTIMIZERS[name], scale)
        callback = SparsityCallback(strength, proximal=proximal, penalty="l1")
        trainer(callback, max_epochs=20).fit(net)
        return gammas(net).abs().mean()

    with pytest.warns(UserWarning, match="has not moved toward zero in epoch 0") as caught:
        assert fit(1e-6) >= 1.0
    assert fit(advice(caught)) < 0.6


def test_without_steps_left_there_is_no_number() -> None:
    net = Pushing(OPTIMIZERS["sgd"], 1e-2)
    with pytest.warns(UserWarning, match=r"Try a larger `strength`\.$"):
        trainer(SparsityCallback(1e-6), max_epochs=1).fit(net)
