"""Small networks and Trainers that the tests of the sparsity callback share."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(pl.LightningModule):
    """A batch norm whose γ the loss hardly cares for, and an instance norm."""

    def __init__(self, lr: float = 0.1, raw: bool = False) -> None:
        super().__init__()
        self.lr, self.raw = lr, raw
        self.body = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
        self.side = nn.InstanceNorm1d(4, affine=True)
        self.head = nn.Linear(4, 1)
        self.automatic_optimization = not raw
        self.seen: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        x, y = batch
        loss = nn.functional.mse_loss(self.head(self.side(self.body(x)).mean(-1)), y)
        if not self.raw:
            return loss
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def train_dataloader(self) -> DataLoader:
        x = torch.randn(32, 1, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.mean(-1)), batch_size=8)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def gammas(net: Net) -> Tensor:
    return torch.cat([net.body[1].weight, net.side.weight]).detach().clone()


def trainer(*callbacks: pl.Callback, **kwargs: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


class AtBatch(pl.Callback):
    """Calls a function at one batch of one epoch."""

    def __init__(self, action: Any, epoch: int = 1, batch: int = 0) -> None:
        self.action, self.when = action, (epoch, batch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.when:
            self.action(trainer, pl_module)


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.gammas: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.gammas.append(gammas(pl_module))


class Flat(Net):
    """Its own loss has no gradient, so that only the penalty moves it."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * 0
