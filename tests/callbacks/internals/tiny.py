"""A small network, small data, and a Trainer that leaves no files behind unless asked to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


def data(n: int = 64, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 6, 6, generator=generator)
    y = (x.mean(dim=(1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 0).long()
    return TensorDataset(x, y)


class TinyNet(pl.LightningModule):
    """Convolution, batch norm, dropout, linear; logs plain tensors and a torchmetrics object."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()
        )
        self.head = nn.Linear(64, 3)
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.best: float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        self.log("val_loss", nn.functional.cross_entropy(logits, y), on_step=True, on_epoch=True)
        self.log("val_acc", self.accuracy)

    def on_validation_epoch_end(self) -> None:
        self.best = max(self.best, float(self.accuracy.compute()))
        self.log("val_best", self.best, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=16, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(data(40, seed=1), batch_size=16)


class At(pl.Callback):
    """Calls a function at the start of the batches named, and keeps what it returns."""

    def __init__(self, run: Callable[[pl.Trainer, Any], Any], epoch: int = 1, batch: int = 0):
        self.run, self.when = run, (epoch, batch)
        self.result: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int):
        if (trainer.current_epoch, batch_idx) == self.when:
            self.result = self.run(trainer, pl_module)


def trainer(*callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **(defaults | arguments))


def at_batch_start(run: Callable[..., Any], module: Any = None, *fit: Any, **arguments: Any) -> Any:
    """What `run(trainer, module)` returns at the start of the second epoch of a short fit."""
    at = At(run)
    trainer(at, **arguments).fit(module if module is not None else TinyNet(), *fit)
    return at.result
