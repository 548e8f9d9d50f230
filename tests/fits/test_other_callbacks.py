"""Beside every callback that Lightning brings along: one short fit each."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_slimga import SparsityCallback, load_pruned
from tests.fits.small_fit import (
    WIDTHS,
    Net,
    assert_equal,
    assert_optimized,
    assert_pruned,
    data,
    fitted,
    lightning_2_6,
    prune,
    widths,
)


def test_learning_rate_monitor(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    monitor = of_lightning.LearningRateMonitor("step")
    fit, module = fitted(Net(), monitor, prune(), logger=logger, log_every_n_steps=1)
    assert_pruned(fit, module)
    assert "lr-SGD" in Path(logger.log_dir, "metrics.csv").read_text()


class Tunable(Net):
    """With what the finders look for."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.01, 2

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=self.batch_size)


def test_learning_rate_finder() -> None:
    finder = of_lightning.LearningRateFinder(1e-4, 0.1, num_training_steps=20)
    fit, module = fitted(Tunable(), finder, prune())
    assert_pruned(fit, module)
    assert fit.current_epoch == 2
    assert fit.optimizers[0].param_groups[0]["lr"] == module.lr != 0.01


@pytest.mark.filterwarnings("ignore:You .* batch_size")
def test_batch_size_finder() -> None:
    finder = of_lightning.BatchSizeFinder("power", steps_per_trial=1, max_trials=1)
    fit, module = fitted(Tunable(), finder, prune())
    assert_pruned(fit, module)
    assert fit.global_step == 2 * -(-24 // module.batch_size)


def test_gradient_accumulation_scheduler() -> None:
    schedule = of_lightning.GradientAccumulationScheduler({0: 1, 1: 2})
    fit, module = fitted(Net(), schedule, prune())
    assert_pruned(fit, module)
    assert fit.global_step == 2 + 1


@pytest.mark.parametrize("rich", [False, True])
def test_the_summary_is_printed_again_small(
    rich: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    summary = of_lightning.RichModelSummary() if rich else of_lightning.ModelSummary()
    _, module = fitted(Net(), summary, prune(), enable_model_summary=True)
    text = capsys.readouterr().out + caplog.text
    assert text.count("Total params") == 2
    assert f" {sum(p.numel() for p in module.body.parameters())} " in text


@pytest.mark.parametrize("rich", [False, True])
def test_progress_bars(rich: bool, capsys: pytest.CaptureFixture[str]) -> None:
    bar = of_lightning.RichProgressBar() if rich else of_lightning.TQDMProgressBar()
    fit, module = fitted(Net(), bar, prune(), enable_progress_bar=True)
    assert_pruned(fit, module)
    printed = capsys.readouterr()
    assert "search: generation 1/2" in printed.out + printed.err
    assert "whole network" in printed.out + printed.err


class Backbone(Net):
    """`BackboneFinetuning` wants the body to have this name."""

    @property
    def backbone(self) -> Any:
        return self.body

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.05, momentum=0.9)


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
@pytest.mark.parametrize("unfreeze", [1, 2])
def test_a_backbone_that_is_unfrozen_later(unfreeze: int) -> None:
    """In the epoch of the surgery, and after it: the new group must hold live parameters."""
    theirs = of_lightning.BackboneFinetuning(unfreeze, initial_denom_lr=2.0)
    fit, module = fitted(Backbone(), theirs, prune(), max_epochs=4)
    assert_pruned(fit, module)
    assert len(fit.optimizers[0].param_groups) == 2
    assert all(p.requires_grad for p in module.parameters())


def test_device_stats_monitor(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    theirs = of_lightning.DeviceStatsMonitor(cpu_stats=True)
    logger = CSVLogger(tmp_path)
    fit, module = fitted(Net(), theirs, prune(), logger=logger, log_every_n_steps=1)
    assert_pruned(fit, module)
    assert "on_train_batch_start/cpu_percent" in Path(logger.log_dir, "metrics.csv").read_text()


def test_a_timer() -> None:
    timer = of_lightning.Timer(duration="00:01:00:00")
    fit, module = fitted(Net(), timer, prune())
    assert_pruned(fit, module)
    assert timer.time_elapsed("train") > 0


def test_a_timer_that_ends_the_fit_before_the_search() -> None:
    timer = of_lightning.Timer({"microseconds": 1}, interval="epoch")
    with pytest.warns(UserWarning, match=r"ended after 1 epochs.*nothing was pruned"):
        _, module = fitted(Net(), timer, prune())
    assert widths(module) == WIDTHS


def test_an_exception_after_the_surgery(tmp_path: Path) -> None:
    class Fails(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step == 3:
                raise ValueError("after surgery")

    theirs = of_lightning.OnExceptionCheckpoint(tmp_path)
    module = Fails()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="after surgery"):
            fitted(module, theirs, prune())
    assert_equal(load_pruned(Net, theirs.ckpt_path), module)


def test_lambda_and_other_hooks_hear_of_the_surgery_once() -> None:
    heard = []

    class Hears(pl.Callback):
        def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
            heard.append(plan)

    callback = prune()
    fitted(Net(), Hears(), callback, max_epochs=3)
    assert heard == [callback.plan]


def test_the_order_of_callbacks_does_not_matter(tmp_path: Path) -> None:
    def run(order: int) -> Any:
        everything = [
            SparsityCallback(0.1),
            prune(),
            of_lightning.LearningRateMonitor(),
            of_lightning.EarlyStopping("val_loss", patience=9),
            of_lightning.ModelCheckpoint(tmp_path / str(order), monitor="val_loss"),
        ][::order]
        fit, module = fitted(Net(), *everything, logger=CSVLogger(tmp_path), max_epochs=3)
        assert_pruned(fit, module)
        return module

    assert_equal(run(1), run(-1))


def test_callbacks_from_the_module() -> None:
    class Own(Net):
        def configure_callbacks(self) -> Any:
            return [prune(), SparsityCallback(0.1)]

    fit, module = fitted(Own())
    assert_pruned(fit, module)


def test_a_callback_that_logs_the_monitored_metric_itself() -> None:
    """It is muted during the search, so the metric is missing then, and the error says so."""

    class Logs(pl.Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("from_callback", 1.0)

    with pytest.raises(Exception, match=r"'from_callback'; logged was: 'val_acc', 'val_loss'"):
        fitted(Net(), Logs(), prune(monitor="from_callback"))


@lightning_2_6
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_under_a_trainer_of_the_other_package(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = pytest.importorskip("pytorch_lightning")
    as_other: Any = type("Net", (other.LightningModule,), {})

    class OtherNet(as_other):
        def __init__(self) -> None:
            super().__init__()
            plain = Net()
            self.body, self.head = plain.body, plain.head

        forward = Net.forward

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

        def train_dataloader(self) -> Any:
            return DataLoader(data(), batch_size=12)

        def val_dataloader(self) -> Any:
            return DataLoader(data(20, seed=1), batch_size=20)

    def run(module: Any, path: Any = None) -> Any:
        best = other.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}")
        stop = other.callbacks.EarlyStopping("val_loss", patience=9)
        fit = other.Trainer(
            callbacks=[best, stop, prune()],
            accelerator="cpu",
            max_epochs=3,
            logger=other.loggers.CSVLogger(tmp_path),
            enable_progress_bar=True,
            enable_model_summary=True,
        )
        fit.fit(module, ckpt_path=path)
        assert sum(widths(module)) < sum(WIDTHS)
        assert_optimized(fit, module)
        return fit, best

    module, resumed = OtherNet(), OtherNet()
    _, best = run(module)
    assert Path(best.best_model_path).name in ("epoch=1.ckpt", "epoch=2.ckpt")
    assert "lightning_slimga" in torch.load(best.best_model_path, weights_only=True)
    loaded = load_pruned(OtherNet, best.best_model_path)
    assert widths(loaded) == widths(module)
    other.Trainer(
        callbacks=[prune()], accelerator="cpu", logger=False, enable_progress_bar=False
    ).validate(resumed, ckpt_path=best.best_model_path, verbose=False)
    assert widths(resumed) == widths(module)
