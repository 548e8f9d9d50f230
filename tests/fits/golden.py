"""Searches whose masks and histories are frozen as data, so that no change moves results unseen.

`python -m tests.fits.golden` writes them anew, after a deliberate change of a search.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga import GeneticPruneCallback, SparsityCallback
from lightning_slimga.search import GeneticSearch, Limits, ParetoSearch
from tests.search.spaces import drive, hidden_metric, make_space

FILE = Path(__file__).with_name("golden.json")
SEEDS = (0, 1, 2)


class Digits(pl.LightningModule):
    """Three convolutions on scikit-learn's digits, in float64: rounding decides nothing."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).double().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def loader(self, part: slice) -> DataLoader[Any]:
        x, y = load_digits(return_X_y=True)
        images = torch.tensor(x[part]).view(-1, 1, 8, 8) / 16
        return DataLoader(TensorDataset(images, torch.tensor(y[part])), batch_size=50)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(slice(0, 1000))

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(slice(1000, 1500))


def fit(seed: int) -> dict[str, Any]:
    """One search of 40 candidates inside a fit, for half of the MACs."""
    prune = GeneticPruneCallback(
        monitor="val_acc",
        mode="max",
        budget={"macs": 0.5},
        prune_epoch=2,
        population_size=8,
        generations=5,
        recalibration_batches=2,
        seed=seed,
        report=False,
    )
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        precision="64-true",
        callbacks=[SparsityCallback(strength=0.1), prune],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=20,
    )
    trainer.fit(Digits(seed))
    assert prune.plan is not None
    cuts = prune.plan.state_dict()["tensors"]
    return {"cuts": json.loads(json.dumps(cuts, default=_plain)), "history": _told(prune.history)}


def search(kind: type[GeneticSearch] | type[ParetoSearch], seed: int) -> dict[str, Any]:
    """One search of a hidden metric, without a network."""
    space = make_space((8, 12, 16, 24), seed=seed)
    found = kind(space, population_size=12, limits=Limits(6), seed=seed)
    drive(found, hidden_metric(space))
    mask, value = found.best
    return {
        "mask": "".join("01"[int(bit)] for bit in mask),
        "best": value,
        "history": _told(found.history),
    }


def found() -> dict[str, Any]:
    """Everything that is frozen, computed now."""
    return {f"{name} {seed}": run(seed) for seed in SEEDS for name, run in RUNS.items()}


RUNS = {
    "fit": fit,
    "genetic": lambda seed: search(GeneticSearch, seed),
    "pareto": lambda seed: search(ParetoSearch, seed),
}


def _told(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without what the clock says."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def _plain(value: Any) -> Any:
    return value.tolist()


if __name__ == "__main__":
    FILE.write_text(json.dumps(found(), indent=1) + "\n")
