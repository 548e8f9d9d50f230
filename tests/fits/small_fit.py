"""A small network with something to remove, small data, and a search of a few candidates."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga import GeneticPruneCallback

WIDTHS = (8, 12)
"""Channels of the two convolutions: what can be removed."""

lightning_2_6 = pytest.mark.skipif(
    not RequirementCache("lightning>=2.6"), reason="Lightning has this from 2.6 on"
)

when_resumed = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*was called without a model"),
    pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
"""What Lightning says of a fit that goes on from a checkpoint, in the same folder or another."""


def data(count: int = 24, seed: int = 0) -> TensorDataset:
    """Images of four classes that differ in where they are bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    x = torch.randn(count, 2, 6, 6, generator=generator)
    for k in range(4):
        x[y == k, k % 2, 3 * (k // 2) : 3 * (k // 2) + 3] += 1.0
    return TensorDataset(x, y)


class Net(pl.LightningModule):
    """Two convolutions with batch norm and a head."""

    def __init__(self, widths: tuple[int, int] = WIDTHS, optimizer: str = "sgd") -> None:
        super().__init__()
        torch.manual_seed(11)  # every network of the same widths is the same
        first, second = widths
        self.body = nn.Sequential(
            nn.Conv2d(2, first, 3),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
        )
        self.head = nn.Linear(second, 4)
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=1e-2)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=12)

    def val_dataloader(self) -> Any:
        return DataLoader(data(20, seed=1), batch_size=20)

    def test_dataloader(self) -> Any:
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        return self.val_dataloader()


def prune(**arguments: Any) -> GeneticPruneCallback:
    """The callback, searching little and writing no report."""
    defaults: dict[str, Any] = {
        "monitor": "val_loss",
        "mode": "min",
        "budget": {"macs": 0.5},
        "prune_epoch": 1,
        "population_size": 4,
        "generations": 2,
        "recalibration_batches": 1,
        "report": False,
    }
    return GeneticPruneCallback(**{**defaults, **arguments})


def trainer(*callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    """A quiet Trainer for two epochs, one before the search and one after it."""
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **arguments})


def fitted(
    module: pl.LightningModule, *callbacks: pl.Callback, **arguments: Any
) -> tuple[pl.Trainer, pl.LightningModule]:
    """Fit `module` with fixed random numbers."""
    pl.seed_everything(7, verbose=False)
    fit = trainer(*callbacks, **arguments)
    fit.fit(module)
    return fit, module


def widths(module: Any) -> tuple[int, int]:
    """Channels that the two convolutions have now, checked against all that depends on them."""
    net = getattr(module, "_orig_mod", module)
    conv1, norm1, _, conv2, norm2, _ = net.body
    first, second = conv1.out_channels, conv2.out_channels
    assert norm1.num_features == len(norm1.weight) == len(norm1.running_mean) == first
    assert norm2.num_features == len(norm2.weight) == len(norm2.running_mean) == second
    assert conv1.weight.shape == (first, 2, 3, 3)
    assert conv2.weight.shape == (second, first, 3, 3)
    assert conv2.in_channels == first
    assert net.head.weight.shape == (4, second)
    assert net.head.in_features == second
    return first, second


def assert_pruned(fit: pl.Trainer, module: Any) -> None:
    """The network is small, and the optimizers hold exactly its live parameters."""
    assert sum(widths(module)) < sum(WIDTHS)
    assert_optimized(fit, module)


def assert_optimized(fit: pl.Trainer, module: nn.Module) -> None:
    """Every trainable parameter is in an optimizer, by identity and once; state has its shape."""
    held = [p for o in fit.optimizers for group in o.param_groups for p in group["params"]]
    live = [p for p in module.parameters() if p.requires_grad]
    assert sorted(map(id, held)) == sorted(map(id, live))
    for optimizer in fit.optimizers:
        assert {id(p) for p in optimizer.state} <= set(map(id, held))
        for parameter, state in optimizer.state.items():
            for value in state.values():
                if isinstance(value, Tensor) and value.numel() > 1:
                    assert value.shape == parameter.shape


def assert_equal(one: Any, other: Any) -> None:
    """The same weights and buffers, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
