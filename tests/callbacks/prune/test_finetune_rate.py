"""The learning rate after surgery, seen where it acts: in how far a step goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import optim
from torch.utils.data import DataLoader, Subset

from tests.fits.small_fit import Net, assert_equal, assert_pruned, data, fitted, prune, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")

BATCHES = 4
EPOCHS, PRUNE_EPOCH = 5, 2


class Steps(Net):
    """Plain gradient descent: a step divided by the gradient is the rate that was used."""

    schedules: ClassVar[dict[str, Any]] = {
        "constant": None,
        "epoch": lambda o: optim.lr_scheduler.StepLR(o, 1, 0.5),
        "step": lambda o: optim.lr_scheduler.OneCycleLR(o, 0.1, EPOCHS * BATCHES),
        "cosine": lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 2),
        "sequence": lambda o: optim.lr_scheduler.SequentialLR(
            o,
            [optim.lr_scheduler.ConstantLR(o, 0.1, 2), optim.lr_scheduler.StepLR(o, 1, 0.5)],
            milestones=[2],
        ),
    }

    def __init__(self, schedule: str = "constant") -> None:
        super().__init__()
        self.schedule = schedule
        self.rates: list[float] = []
        self.momenta: list[float] = []

    def train_dataloader(self) -> Any:
        return DataLoader(data(6 * BATCHES), batch_size=6)

    def configure_optimizers(self) -> Any:
        momentum = 0.9 if self.schedule == "step" else 0.0
        optimizer = optim.SGD(self.parameters(), lr=0.1, momentum=momentum)
        make = self.schedules[self.schedule]
        if make is None:
            return optimizer
        interval = "step" if self.schedule == "step" else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": make(optimizer), "interval": interval},
        }

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.before = self.head.weight.detach().clone()
        self.momenta.append(optimizer.param_groups[0].get("momentum", 0.0))

    def on_train_batch_end(self, *_: Any) -> None:
        step = (self.before - self.head.weight.detach()).norm()
        self.rates.append(float(step / self.head.weight.grad.norm()))


def run(policy: str, schedule: str, *callbacks: Any, **arguments: Any) -> tuple[Any, Steps]:
    module = Steps(schedule)
    callback = prune(prune_epoch=PRUNE_EPOCH, finetune_lr=policy)
    fit, _ = fitted(module, callback, *callbacks, max_epochs=EPOCHS, **arguments)
    assert_pruned(fit, module)
    return fit, module


WARM = PRUNE_EPOCH * BATCHES
SCHEDULES = [name for name in Steps.schedules if name != "step"]


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_that_is_used(schedule: str) -> None:
    kept = run("keep", schedule)[1].rates
    warmed = run("rewarm", schedule)[1].rates
    again = run("restart", schedule)[1].rates
    assert warmed[:WARM] == again[:WARM] == kept[:WARM]
    rising = [(k + 1) / BATCHES for k in range(BATCHES)] + [1.0] * (2 * BATCHES)
    expected = [rate * share for rate, share in zip(kept[WARM:], rising, strict=True)]
    assert warmed[WARM:] == pytest.approx(expected, rel=1e-3)
    assert again[WARM:] == pytest.approx(kept[: len(again) - WARM], rel=1e-3)
    if schedule == "epoch":
        assert kept == pytest.approx([0.1 * 0.5 ** (k // BATCHES) for k in range(20)], rel=1e-3)


def test_several_surgeries() -> None:
    """ "rewarm" rises after each, "restart" begins again after each."""
    rates = {}
    for policy in ("keep", "rewarm", "restart"):
        module = Steps("epoch")
        callback = prune(
            prune_epoch=None,
            prune_epochs=[1, 3],
            budget=[{"macs": 0.7}, {"macs": 0.4}],
            finetune_lr=policy,
        )
        fitted(module, callback, max_epochs=EPOCHS)
        rates[policy] = module.rates
    kept = [0.1 * 0.5**epoch for epoch in range(5) for _ in range(BATCHES)]
    assert rates["keep"] == pytest.approx(kept, rel=1e-3)
    rising = [(k + 1) / BATCHES for k in range(BATCHES)]
    share = [1.0] * BATCHES + rising + [1.0] * BATCHES + rising + [1.0] * BATCHES
    warmed = [rate * part for rate, part in zip(kept, share, strict=True)]
    assert rates["rewarm"] == pytest.approx(warmed, rel=1e-3)
    again = [kept[BATCHES * epoch + k] for epoch in (0, 0, 1, 0, 1) for k in range(BATCHES)]
    assert rates["restart"] == pytest.approx(again, rel=1e-3)


def test_a_schedule_by_steps_that_cycles_the_momentum_too() -> None:
    class Shown(Steps):
        def on_train_batch_start(self, *_: Any) -> None:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_batch_end(self, *_: Any) -> None:
            pass

    kept, again = Shown("step"), Shown("step")
    for module, policy in ((kept, "keep"), (again, "restart")):
        callback = prune(prune_epoch=PRUNE_EPOCH, finetune_lr=policy)
        fitted(module, callback, max_epochs=EPOCHS)
    left = EPOCHS * BATCHES - WARM
    assert again.rates[WARM:] == kept.rates[:left]
    assert again.momenta[WARM:] == kept.momenta[:left]
    assert len(set(kept.momenta[:left])) == left


@pytest.mark.parametrize("schedule", ["constant", "epoch"])
@pytest.mark.parametrize("policy", ["rewarm", "restart"])
@pytest.mark.parametrize("saved", [4, 8, 12])
def test_resumed_before_the_surgery_and_after_it(
    tmp_path: Path, policy: str, schedule: str, saved: int
) -> None:
    def every() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)

    _, whole = run(policy, schedule, every())
    module = Steps(schedule)
    fit = trainer(prune(prune_epoch=PRUNE_EPOCH, finetune_lr=policy), every(), max_epochs=EPOCHS)
    fit.fit(module, ckpt_path=tmp_path / f"step={saved}.ckpt")
    assert_equal(module, whole)
    assert module.rates == whole.rates[saved:]


class SameBatch(Steps):
    """Every batch is the same, as Lightning starts the data anew in the middle of an epoch."""

    def train_dataloader(self) -> Any:
        return DataLoader(Subset(data(6), list(range(6)) * BATCHES), batch_size=6)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("done", [1, 2, 3])
def test_resumed_while_the_rate_is_rising(tmp_path: Path, done: int) -> None:
    def fit(module: Any, path: Any = None) -> Any:
        saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        callback = prune(prune_epoch=PRUNE_EPOCH, finetune_lr="rewarm")
        one = trainer(callback, saver, max_epochs=EPOCHS)
        one.fit(module, ckpt_path=path)
        return module

    whole = fit(SameBatch())
    path = tmp_path / f"step={WARM + done}.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1
    resumed = fit(SameBatch(), path)
    assert_equal(resumed, whole)
    assert resumed.rates == whole.rates[WARM + done :]
    rising = [0.1 * (k + 1) / BATCHES for k in range(done, BATCHES)]
    assert resumed.rates[: BATCHES - done] == pytest.approx(rising, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*was called without a model")
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint")
def test_an_exception_within_a_step_does_not_leave_a_reduced_rate(tmp_path: Path) -> None:
    class Fails(Steps):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == WARM + 1:
                raise ValueError("within a step")
            return super().training_step(batch, batch_idx)

    saver = OnExceptionCheckpoint(tmp_path)
    callback = prune(prune_epoch=PRUNE_EPOCH, finetune_lr="rewarm")
    with pytest.raises(ValueError, match="within a step"):
        trainer(saver, callback, max_epochs=EPOCHS).fit(Fails())
    file = torch.load(saver.ckpt_path, weights_only=True)
    assert file["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1


def test_a_scaler_that_skips_steps_does_not_leave_a_reduced_rate() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1e30, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    module = Net()
    callback = prune(prune_epoch=PRUNE_EPOCH, finetune_lr="rewarm")
    fit, _ = fitted(module, callback, plugins=plugin, max_epochs=EPOCHS)
    assert scaler.get_scale() < 1e30
    assert fit.optimizers[0].param_groups[0]["lr"] == 0.05


def test_nothing_is_left_on_the_optimizers() -> None:
    fit, _ = run("rewarm", "constant")
    assert not fit.optimizers[0]._optimizer_step_pre_hooks
    assert not fit.optimizers[0]._optimizer_step_post_hooks


def test_an_unknown_policy() -> None:
    with pytest.raises(ValueError, match="`finetune_lr` to be 'keep', 'rewarm' or 'restart', but"):
        prune(finetune_lr="reheat")
