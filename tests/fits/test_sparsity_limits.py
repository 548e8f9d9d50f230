"""What "auto" must not do: empty a layer, raise λ without end, ruin a short fit, advise wrongly."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback
from lightning_slimga.callbacks.sparsity.strength import SteeredStrength
from tests.callbacks.sparsity.test_strength import Digits, share
from tests.fits.sparsity_net import Flat, gammas, trainer


def largest(net: nn.Module) -> Tensor:
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    return torch.stack([norm.weight.detach().abs().max() for norm in norms])


class Still(Digits):
    """Only the penalty moves it."""

    def __init__(self, optimizer: str) -> None:
        super().__init__(residual=False)
        self.chosen = optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.chosen == "adam":
            return torch.optim.Adam(self.parameters(), lr=0.05)
        momentum = 0.9 if self.chosen == "momentum" else 0.0
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=momentum)


class Watch(pl.Callback):
    def __init__(self) -> None:
        self.lowest, self.strongest = math.inf, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.lowest = min(self.lowest, float(largest(pl_module).min()))
        self.strongest = max(self.strongest, trainer.callbacks[0]._schedule.now)


@pytest.mark.filterwarnings("ignore:.*wanted were")
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("proximal", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("strength", [0.5, 4.0, 1e4])
def test_no_strength_and_no_optimizer_empty_a_layer(
    optimizer: str, proximal: bool, coupled: bool, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SteeredStrength, "_limit", lambda self, reach: strength)
    monkeypatch.setattr(SteeredStrength, "START", strength)
    callback, watch = SparsityCallback("auto", proximal=proximal, coupled=coupled), Watch()
    trainer(callback, watch, max_epochs=12).fit(Still(optimizer))
    assert watch.lowest > 0.1 - 1e-5


@pytest.mark.filterwarnings("ignore:.*wanted were")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("epochs", [9, 18])  # 72 and 144 steps
@pytest.mark.parametrize("coupled", [True, False])
def test_a_short_fit_is_not_ruined(optimizer: str, epochs: int, coupled: bool) -> None:
    def right(*callbacks: pl.Callback) -> float:
        pl.seed_everything(1, verbose=False)
        net = Digits(width=12, optimizer=optimizer)
        trainer(*callbacks, max_epochs=epochs).fit(net)
        images, labels = net.train_dataloader().dataset.tensors
        net.train()  # so short a fit has no settled running statistics
        return float((net(images).argmax(1) == labels).float().mean())

    watch = Watch()
    assert right(SparsityCallback("auto", coupled=coupled), watch) > right() - 0.25
    assert watch.strongest < 10


@pytest.mark.filterwarnings("ignore:.*wanted were")
def test_strength_is_bounded_where_nothing_moves() -> None:
    class Frozen(Flat):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            rest = [p for name, p in self.named_parameters() if "head" in name]
            still = [p for name, p in self.named_parameters() if "head" not in name]
            return torch.optim.SGD([{"params": rest}, {"params": still, "lr": 1e-9}], lr=0.1)

    net, callback = Frozen(), SparsityCallback("auto")
    trainer(callback, max_epochs=60).fit(net)
    # A step moves γ = 1 by at most a tenth of it: lr · λ / 2 <= 1 / 10.
    assert 1e-9 * callback._schedule.strength <= 0.2 + 1e-6
    assert (gammas(net) > 0).all()


def test_share_counts_without_what_has_to_stay() -> None:
    """Half of these γ can go only if the largest of both layers is left out of the count."""
    net = Flat()
    with torch.no_grad():
        net.body[1].weight.copy_(torch.tensor([0.06, 0.05, 0.04, 0.03]))
    callback = SparsityCallback("auto", target_share=0.5)
    trainer(callback, max_epochs=60).fit(net)
    assert float((gammas(net).abs() < 1e-2).float().mean()) == 0.5
    assert gammas(net)[0] == pytest.approx(0.06)
    assert callback._schedule.strength < 2.1


def test_overshoot_and_undershoot_have_their_own_advice() -> None:
    steering = SteeredStrength(0.5, 1e-2, 0, None)
    with pytest.warns(UserWarning, match=r"86% of γ.*weight decay") as caught:
        steering.finish(0.86, "It ended")
    assert "more epochs" not in str(caught[0].message)
    with pytest.warns(UserWarning, match=r"14% of γ.*more epochs") as caught:
        steering.finish(0.14, "It ended")
    assert "weight decay" not in str(caught[0].message)


@pytest.mark.filterwarnings("ignore:.*wanted were")
def test_what_is_missing_late_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SteeredStrength, "STEPS", 1000)
    net = Digits(residual=False)
    with torch.no_grad():
        net.stem[1].weight[:3] = 0.0
    callback = SparsityCallback("auto", target_share=0.6)
    trainer(callback, max_epochs=30).fit(net)
    assert callback._schedule.share < 0.6
    assert share(net) <= callback._schedule.share + 0.05
