"""A short deterministic fit that can be struck by a signal at a chosen moment.

`python -m tests.fits.crash.training_script FOLDER [--at PHASE:CALL] [--signal KILL]`: trains, from
the last checkpoint in FOLDER if there is one, and leaves `final.pt` there. Moments are calls of
functions of this package and of Lightning, counted within a phase of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga import GeneticPruneCallback, SparsityCallback
from lightning_slimga.callbacks.internals import FitnessEvaluator
from lightning_slimga.callbacks.prune import announcer
from lightning_slimga.callbacks.prune.run import PruningRun
from lightning_slimga.cost.latency import measure_latency

PHASES = ("sparse training", "search", "surgery", "fine-tuning")
WATCHED = ("/lightning_slimga/", "/lightning/pytorch/")
EPOCHS, PRUNE_EPOCH = 5, 2


class Net(pl.LightningModule):
    """Two convolutions with batch norm; nothing random in training, data in order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(2, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
        )
        self.head = nn.Linear(24, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.body(batch[0]).mean((2, 3))), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]

    def train_dataloader(self) -> Any:
        return DataLoader(images(36, 0), batch_size=12)

    def val_dataloader(self) -> Any:
        return DataLoader(images(24, 1), batch_size=12)


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    x = torch.randn(count, 2, 6, 6, generator=generator)
    x += y.view(-1, 1, 1, 1) * torch.linspace(-1, 1, 36).view(6, 6)
    return TensorDataset(x, y)


class Moments:
    """A profile function: counts calls by phase, and sends this process a signal at one of them."""

    def __init__(self, at: tuple[str, int] | None, number: int) -> None:
        self.at, self.number = at, number
        self.phase = PHASES[0]
        self.calls: Counter[str] = Counter()
        self.evaluations = 0
        self._watched: dict[CodeType, bool] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call":
            if code is PruningRun.execute.__code__:
                self.phase = "search"
            elif code is PruningRun._cut.__code__:
                self.phase = "surgery"
            self.evaluations += code is FitnessEvaluator.__call__.__code__
        elif event == "return" and code is PruningRun._cut.__code__:
            self.phase = "fine-tuning"
        if event in ("call", "c_call") and self._is_watched(code):
            self.calls[self.phase] += 1
            if self.at == (self.phase, self.calls[self.phase]):
                os.kill(os.getpid(), self.number)

    def _is_watched(self, code: CodeType) -> bool:
        if code not in self._watched:
            self._watched[code] = any(part in code.co_filename for part in WATCHED)
        return self._watched[code]


def train(
    folder: Path,
    at: tuple[str, int] | None = None,
    number: int = signal.SIGKILL,
    callbacks: Sequence[pl.Callback] = (),
    module: pl.LightningModule | None = None,
    ckpt_path: str = "last",
) -> None:
    """Fit to the end, or until the signal; at the end `final.pt` holds what matters."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    module = module or Net()
    prune = GeneticPruneCallback(
        "val_loss",
        mode="min",
        budget={"macs": 0.5},
        prune_epoch=PRUNE_EPOCH,
        population_size=4,
        generations=3,
        recalibration_batches=1,
        report=False,
    )
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[
            SparsityCallback(strength=1e-3),
            prune,
            ModelCheckpoint(dirpath=folder, save_last=True, save_top_k=-1),
            *callbacks,
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    moments = Moments(at, number)
    sys.setprofile(moments)
    brief = partial(measure_latency, min_run_time=1e-4)
    try:
        with patch.object(announcer, "measure_latency", brief):
            trainer.fit(module, ckpt_path=ckpt_path)
    finally:
        sys.setprofile(None)
        seen = {"calls": moments.calls, "evaluations": moments.evaluations}
        (folder / "seen.json").write_text(json.dumps(seen))
    torch.save(
        {
            "weights": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict()["state"],
            "epoch": trainer.current_epoch,
            "candidates": prune.history[-1]["evaluations"] if prune.history else 0,
        },
        folder / "final.pt",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at", help=f"moment of the signal; phases: {', '.join(PHASES)}")
    parser.add_argument("--signal", default="KILL")
    arguments = parser.parse_args()
    phase, _, call = (arguments.at or "").partition(":")
    moment = (phase, int(call)) if call else None
    train(arguments.folder, moment, getattr(signal, f"SIG{arguments.signal}"))


if __name__ == "__main__":
    main()
