"""Precisions, optimizers, schedules and ways to step: one short fit each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn, optim
from torch.utils.data import DataLoader

from lightning_slimga import SparsityCallback
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_pruned,
    data,
    fitted,
    prune,
    widths,
)


class With(Net):
    """Any optimizer and schedule."""

    def __init__(self, make: Callable[..., Any], schedule: Any = None, **config: Any) -> None:
        super().__init__()
        self.make, self.schedule, self.config = make, schedule, config

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        if self.schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule(optimizer), **self.config},
        }


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_precision(precision: Any) -> None:
    dtypes = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
    module = Net(optimizer="adamw")
    fit, _ = fitted(module, SparsityCallback(0.1), prune(), precision=precision)
    assert_pruned(fit, module)
    wanted = dtypes.get(precision, torch.float32)
    assert {p.dtype for p in module.parameters()} == {wanted}
    state = fit.optimizers[0].state[module.body[0].weight]
    assert state["exp_avg"].dtype == wanted
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("make", [partial(optim.SGD, lr=0.05, momentum=0.9), optim.AdamW])
def test_half_precision_with_a_gradient_scaler(make: Any, clip: float | None) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    module = With(make)
    fit, _ = fitted(module, SparsityCallback(0.1), prune(), plugins=plugin, gradient_clip_val=clip)
    assert_pruned(fit, module)
    assert scaler.get_scale() == 64.0 * 2**4  # grown by every step: none was skipped
    assert all(torch.isfinite(p).all() for p in module.parameters())


class Unbatched(Net):
    """Steps as a user would write them: the same gradient over one batch or over two halves."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        for norm in (self.body[1], self.body[4]):
            norm.eval()
            norm.train = lambda mode=True: None  # statistics would tell the halves apart

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=self.size)


@pytest.mark.filterwarnings("ignore:Found 2 module.s. in eval mode")
def test_accumulated_batches_count_as_one() -> None:
    one, whole = fitted(Unbatched(12), prune(recalibration_batches=0))
    two, halves = fitted(Unbatched(6), prune(recalibration_batches=0), accumulate_grad_batches=2)
    assert_pruned(one, whole)
    assert_pruned(two, halves)
    assert one.global_step == two.global_step == 4
    assert widths(whole) == widths(halves)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(halves.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping(algorithm: str) -> None:
    class Clipped(Net):
        largest = 0.0

        def on_before_zero_grad(self, optimizer: Any) -> None:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            if grads:
                sizes = torch.stack([g.abs().max() for g in grads])
                norms = torch.stack([g.norm() for g in grads])
                found = norms.norm() if algorithm == "norm" else sizes.max()
                self.largest = max(self.largest, float(found))

    fit, module = fitted(
        Clipped(), prune(), gradient_clip_val=0.01, gradient_clip_algorithm=algorithm
    )
    assert_pruned(fit, module)
    assert 0 < module.largest <= 0.0101


SCHEDULES: dict[str, Any] = {
    "step": partial(optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
    "cosine": partial(optim.lr_scheduler.CosineAnnealingLR, T_max=4),
    "one cycle": partial(optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=8),
    "warm restarts": partial(optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0=2),
    "lambda": partial(optim.lr_scheduler.LambdaLR, lr_lambda=lambda k: 1 / (k + 1)),
    "cyclic": partial(optim.lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2),
}


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'")
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_as_if_nothing_had_happened(name: str, interval: str) -> None:
    class Rates(With):
        def on_train_batch_end(self, *_: Any) -> None:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def rates(*callbacks: Any) -> list[float]:
        make = partial(optim.SGD, lr=0.05, momentum=0.9)
        module = Rates(make, SCHEDULES[name], interval=interval)
        module.rates = []
        fit, _ = fitted(module, *callbacks, max_epochs=3)
        if callbacks:
            assert_pruned(fit, module)
        return module.rates

    assert rates(prune()) == rates()


@pytest.mark.parametrize("reset", [True, False])
def test_reduce_on_plateau_starts_anew(reset: bool) -> None:
    """The dip after the surgery must not cost learning rate, unless one wants it so."""

    class Scored(With):
        def on_validation_epoch_end(self) -> None:
            self.log("score", (0.9, 0.6, 0.7)[self.trainer.current_epoch])

    module = Scored(
        partial(optim.SGD, lr=0.05),
        partial(optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0),
        monitor="score",
    )
    fit, _ = fitted(module, prune(reset_monitors=reset), max_epochs=3)
    assert_pruned(fit, module)
    rate = fit.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(0.05 if reset else 0.0005)


OPTIMIZERS: dict[str, Any] = {
    "sgd foreach": partial(optim.SGD, lr=0.05, momentum=0.9, foreach=True),
    "sgd fused": partial(optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "adam foreach": partial(optim.Adam, lr=1e-2, foreach=True),
    "adam fused": partial(optim.Adam, lr=1e-2, fused=True),
    "adamw amsgrad": partial(optim.AdamW, lr=1e-2, amsgrad=True),
    "rmsprop": partial(optim.RMSprop, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": partial(optim.Adagrad, lr=1e-2),
    "nadam": partial(optim.NAdam, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    module = With(OPTIMIZERS[name])
    fit, _ = fitted(module, SparsityCallback(0.1), prune())
    assert_pruned(fit, module)
    assert {id(p) for p in fit.optimizers[0].state} == {id(p) for p in module.parameters()}


def test_an_optimizer_with_state_of_another_shape() -> None:
    module = With(partial(optim.Adafactor, lr=1e-2))
    with pytest.warns(UserWarning, match="Adafactor keeps state that cannot be cut .* anew for"):
        fit, _ = fitted(module, prune())
    assert sum(widths(module)) < sum(WIDTHS)
    held = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}


def test_lbfgs_is_refused_before_the_first_step() -> None:
    module = With(partial(optim.LBFGS, lr=0.1, max_iter=2))
    with pytest.raises(TypeError, match="LBFGS, which keeps one flat history"):
        fitted(module, prune())
    assert module.trainer.global_step == 0
    assert widths(module) == WIDTHS


class Groups(Net):
    """Several parameter groups, and two optimizers with a schedule each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def on_train_epoch_end(self) -> None:
        for schedule in self.lr_schedulers():
            schedule.step()

    def configure_optimizers(self) -> Any:
        vectors = [p for p in self.body.parameters() if p.dim() == 1]
        matrices = [p for p in self.body.parameters() if p.dim() > 1]
        groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "lr": 0.01}]
        first = optim.AdamW(groups, lr=0.02, weight_decay=0.1)
        second = optim.SGD(self.head.parameters(), lr=0.05, momentum=0.9)
        return [first, second], [optim.lr_scheduler.StepLR(o, 1) for o in (first, second)]


def test_several_optimizers_groups_and_schedules() -> None:
    fit, module = fitted(Groups(), SparsityCallback(0.1), prune())
    assert_pruned(fit, module)
    first, second = fit.optimizers
    names = {id(p): name for name, p in module.named_parameters()}
    assert [[names[id(p)] for p in group["params"]] for group in first.param_groups] == [
        ["body.0.bias", "body.1.weight", "body.1.bias", "body.4.weight", "body.4.bias"],
        ["body.0.weight", "body.3.weight"],
    ]
    rates = [group["lr"] for group in (*first.param_groups, *second.param_groups)]
    assert rates == pytest.approx([0.0002, 0.0001, 0.0005])
    assert [group["weight_decay"] for group in first.param_groups] == [0.0, 0.1]


def test_channels_last() -> None:
    class ChannelsLast(Net):
        def setup(self, stage: str) -> None:
            self.to(memory_format=torch.channels_last)

    fit, module = fitted(ChannelsLast(), prune())
    assert_pruned(fit, module)
    assert module.body[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_synchronized_batch_norm() -> None:
    """Alone it computes what batch norm does; two processes are in `tests/distributed`."""

    class Synchronized(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.SyncBatchNorm.convert_sync_batchnorm(self.body)

    callback, plain_callback = prune(), prune()
    fit, module = fitted(Synchronized(), SparsityCallback(0.1), callback)
    _, plain = fitted(Net(), SparsityCallback(0.1), plain_callback)
    assert_pruned(fit, module)
    assert isinstance(module.body[1], nn.SyncBatchNorm)
    assert callback.plan.to_json() == plain_callback.plan.to_json()
    assert_equal(module, plain)
