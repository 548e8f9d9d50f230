"""The same under a Trainer of the `pytorch_lightning` package, whose classes are others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_slimga.callbacks.internals import (
    FitnessEvaluator,
    capture_calls,
    install_checkpoint_hooks,
    reset_monitors,
    training_batches,
)
from tests.callbacks.internals.tiny import data

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    other = pytest.importorskip("pytorch_lightning")


class Net(other.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=16, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(data(40, seed=1), batch_size=40)


class Search(other.Callback):
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) != (1, 0):
            return
        x, y = data(40, seed=1).tensors
        with torch.no_grad():
            expected = nn.functional.cross_entropy(pl_module.net(x), y)
        assert FitnessEvaluator(trainer, pl_module, "val_loss")() == pytest.approx(float(expected))
        with pytest.raises(Exception, match="`monitor` to be a metric that validation logs"):
            FitnessEvaluator(trainer, pl_module, "nothing")()
        batches = training_batches(trainer, pl_module, 2, 0)
        calls = capture_calls(trainer, pl_module, batches, training=True)
        assert [call.module for call in calls] == ["net"] * 2
        install_checkpoint_hooks(
            pl_module, on_load=lambda *_: None, on_save=lambda _, c: c.update(plan=[1])
        )
        self.former = reset_monitors(trainer)


def test_under_the_other_package(tmp_path: Path) -> None:
    best = other.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}")
    search = Search()
    fit = other.Trainer(
        callbacks=[best, search],
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    fit.fit(Net())
    assert search.former == [str(tmp_path / "epoch=0.ckpt")]
    assert torch.load(best.best_model_path, weights_only=True)["plan"] == [1]
    assert Path(best.best_model_path).name == "epoch=1.ckpt"
