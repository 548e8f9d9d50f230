"""Candidates per second of one process and of two, one thread each.

`python -m benchmarks.ranks`: a few minutes. The search judges every candidate on all ranks
together, each on its share of the validation data. On a machine that does other work as well, the
processor time that a candidate takes on each rank says more than the clock.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import time
import warnings
from itertools import pairwise

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_slimga import GeneticPruneCallback

IMAGES, BATCH, CANDIDATES = 2048, 128, 24


class Net(pl.LightningModule):
    """Some convolutions on random images; what they learn does not matter here."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 64)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the cross-entropy."""
        self.log("val_loss", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(pl.Callback):
    """Takes the processor time of the pruning; to stand before the callback that prunes."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Begin anew, until the search begins."""
        if not hasattr(self, "seconds"):
            self.start = time.process_time()

    def on_surgery(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.process_time() - self.start


def loader(count: int, batch_size: int) -> DataLoader:
    """Return random images and labels."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(count, 3, 16, 16), torch.randint(4, (count,)))
    return DataLoader(data, batch_size=batch_size)


def measure(ranks: int) -> tuple[float, float]:
    """Run one short fit in `ranks` processes.

    Returns:
        Candidates per second of the search, and processor seconds per candidate on this rank.
    """
    clock = Clock()
    prune = GeneticPruneCallback(
        "val_loss",
        mode="min",
        budget={"macs": 0.5},
        prune_epoch=1,
        population_size=12,
        generations=CANDIDATES // 12,
        recalibration_batches=2,
        report=False,
    )
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=2,
        limit_train_batches=2,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[clock, prune],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), loader(4 * BATCH, BATCH // ranks), loader(IMAGES, BATCH // ranks))
    evaluations = prune.history[-1]["evaluations"]
    return evaluations / prune.timings["search"], clock.seconds / evaluations


def main() -> None:
    """Measure one process and two in turn, or with `--ranks` once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, help="measure this number of processes once")
    parser.add_argument("--repeat", type=int, default=5, help="times that both are measured")
    arguments = parser.parse_args()
    if arguments.ranks:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        pace, seconds = measure(arguments.ranks)
        if rank_zero_only.rank == 0:
            print(f"RANKS {pace} {seconds}")
        return
    pairs = []
    print("candidates per second        processor seconds per candidate and rank")
    for _ in range(arguments.repeat):
        (one, one_cpu), (two, two_cpu) = started(1), started(2)
        pairs.append((two / one, one_cpu / two_cpu))
        print(f"{one:6.2f} {two:6.2f}  x {two / one:.2f}        "
              f"{one_cpu:6.3f} {two_cpu:6.3f}  / {one_cpu / two_cpu:.2f}", flush=True)  # fmt: skip
    faster, less = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"median         x {faster:.2f}                       / {less:.2f}")


def started(ranks: int) -> tuple[float, float]:
    """Measure in processes of their own."""
    command = [sys.executable, "-m", "benchmarks.ranks", "--ranks", str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    line = next(x for x in done.stdout.splitlines() if x.startswith("RANKS "))
    pace, seconds = map(float, line.split()[1:])
    return pace, seconds


if __name__ == "__main__":
    main()
