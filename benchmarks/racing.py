"""What racing saves on Fashion-MNIST, and whether the winner is as good without it.

    python -m benchmarks.racing            # 3 seeds, about 20 minutes on one core
    python -m benchmarks.racing --quick    # a run of the script itself, numbers mean nothing

For each seed the ResNet of the examples is trained for one epoch. From that network the same
search runs with racing and without, on 20 batches of validation images. Winners are compared as
they come out of surgery, on test images that no search has seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks import measure
from examples.fashion_mnist import FashionClassifier, FashionMNIST
from lightning_slimga import GeneticPruneCallback
from lightning_slimga.search.racing import t_quantile

RESULTS = Path(__file__).parent / "results" / "racing.json"


@dataclass(frozen=True)
class Setting:
    """The constants of the experiment; the JSON file repeats them."""

    seeds: tuple[int, ...] = (0, 1, 2)
    budget: float = 0.35
    epochs: int = 1
    population_size: int = 24
    max_evaluations: int = 216
    eval_batch_size: int = 125
    fitness_batches: int = 20
    limit_train_batches: float = 1.0


QUICK = Setting(
    seeds=(0, 1),
    population_size=4,
    max_evaluations=12,
    eval_batch_size=50,
    limit_train_batches=0.02,
)


class Trained(FashionClassifier):
    """The classifier when its schedule is over; the epoch that a search opens is not run."""

    def configure_optimizers(self) -> Any:
        """Return SGD alone."""
        return torch.optim.SGD(self.parameters(), lr=0.001)


class Winner(L.Callback):
    """Measures the network as it comes out of surgery, and ends the fit."""

    def __init__(self, data: FashionMNIST) -> None:
        self._data = data

    def on_surgery(self, trainer: L.Trainer, pl_module: L.LightningModule, plan: object) -> None:
        """Take the accuracy on the test images."""
        self.accuracy = measure.accuracy(pl_module.net, *self._data.parts["test"].tensors)
        trainer.should_stop = True


def trainer(setting: Setting, epochs: int, callbacks: list[L.Callback]) -> L.Trainer:
    """Return a quiet Trainer."""
    return L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        limit_train_batches=setting.limit_train_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def search(setting: Setting, data: FashionMNIST, dense: Path, seed: int, racing: bool) -> Any:
    """Search from the dense network.

    Returns:
        Seconds of the search, the share of forward work, and the winner's accuracies.
    """
    prune = GeneticPruneCallback(
        monitor="val_acc",
        mode="max",
        budget={"macs": setting.budget},
        prune_epoch=setting.epochs,
        population_size=setting.population_size,
        generations=10**6,
        max_evaluations=setting.max_evaluations,
        fitness_batches=setting.fitness_batches,
        racing=racing,
        seed=seed,
        report=False,
    )
    winner = Winner(data)
    started = time.process_time()
    fit = trainer(setting, setting.epochs + 1, [prune, winner])
    fit.fit(Trained(), data, ckpt_path=dense)
    return {
        "processor_seconds": time.process_time() - started,
        "work": _work(prune.history),
        "validation": prune.history[-1]["best"],
        "test": winner.accuracy,
    }


def _work(history: list[dict[str, Any]]) -> float:
    """Return validation batches that were run, as a share of those without racing."""
    total, before = 0.0, 0
    for entry in history:
        total += entry.get("work", 1.0) * (entry["evaluations"] - before)
        before = entry["evaluations"]
    return total / before


def experiment(setting: Setting, seed: int) -> dict[str, Any]:
    """Train once, search twice."""
    L.seed_everything(seed, verbose=False)
    data = FashionMNIST(eval_batch_size=setting.eval_batch_size)
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.ckpt"
        fit = trainer(setting, setting.epochs, [])
        fit.fit(FashionClassifier(), data)
        fit.save_checkpoint(dense)
        return {
            name: search(setting, data, dense, seed, racing)
            for name, racing in (("without", False), ("with", True))
        }


def interval(values: list[float]) -> str:
    """Return mean and half width of the 95 % interval of Student's t."""
    error = statistics.stdev(values) / len(values) ** 0.5
    half = t_quantile(0.975, len(values) - 1) * error
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


def main() -> None:
    """Run all seeds, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    setting = QUICK if parser.parse_args().quick else Setting()
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    runs = {}
    for seed in setting.seeds:
        runs[seed] = experiment(setting, seed)
        for name, run in runs[seed].items():
            print(f"seed {seed} {name:8}", *(f"{k} {v:.4f}" for k, v in run.items()), flush=True)
    pairs = [(one["with"], one["without"]) for one in runs.values()]
    print("saved validation batches:", interval([1 - raced["work"] for raced, _ in pairs]))
    seconds = [
        1 - raced["processor_seconds"] / plain["processor_seconds"] for raced, plain in pairs
    ]
    print("saved processor time, all included:", interval(seconds))
    for name in ("validation", "test"):
        print(f"{name} accuracy, with:   ", interval([raced[name] for raced, _ in pairs]))
        print(f"{name} accuracy, without:", interval([plain[name] for _, plain in pairs]))
        differences = [raced[name] - plain[name] for raced, plain in pairs]
        print(f"{name} accuracy, difference:", interval(differences))
    if setting != QUICK:
        RESULTS.write_text(json.dumps({"setting": asdict(setting), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
