"""Fashion-MNIST: dense, and 50 % and 35 % of the MACs, in fits of the same number of epochs.

    python -m benchmarks.fashion_mnist            # 3 seeds, about 40 minutes on two cores
    python -m benchmarks.fashion_mnist --quick    # a run of the script itself, numbers mean nothing

Every number is of the last epoch. Networks are chosen on 5,000 validation images; the 10,000 test
images are looked at once for each network that is reported. Both budgets of a seed go on from the
same sparse checkpoint. Writes results/fashion_mnist.json and the tables in README.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import controls, measure
from benchmarks.fashion_tables import update_readme
from examples.fashion_mnist import FashionClassifier, FashionMNIST
from lightning_slimga import ChannelSurgery, GeneticPruneCallback, SparsityCallback

RESULTS = Path(__file__).parent / "results" / "fashion_mnist.json"


@dataclass(frozen=True)
class Setting:
    """The constants of the experiment; the JSON file repeats them."""

    widths: tuple[int, int, int] = (32, 64, 128)
    precision: str = "bf16-mixed"
    budgets: tuple[float, ...] = (0.5, 0.35)
    epochs: int = 12
    prune_epoch: int = 3
    strength: float = 5e-4
    population_size: int = 24
    generations: int = 9
    max_evaluations: int = 120
    fitness_batches: int = 2
    recalibration_batches: int = 6
    limit_train_batches: float = 1.0


QUICK = Setting(
    epochs=2, prune_epoch=1, population_size=4, generations=2, max_evaluations=8,
    limit_train_batches=0.02,
)  # fmt: skip


class KeepSparse(L.Callback):
    """Saves the last checkpoint of full size, from which every budget goes on."""

    def __init__(self, epoch: int, path: Path) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when the sparse epochs are complete."""
        if trainer.current_epoch == self.epoch - 1:
            trainer.save_checkpoint(self.path)


class KeepPruned(L.Callback):
    """Keeps a copy of the network as it comes out of surgery."""

    def on_surgery(self, trainer: L.Trainer, pl_module: L.LightningModule, plan: object) -> None:
        """Copy the network."""
        self.net = copy.deepcopy(pl_module.net)


def dense_run(seed: int, setting: Setting) -> dict[str, Any]:
    """Train a network without the callbacks and measure it."""
    data, model = FashionMNIST(), seeded_model(seed, setting)
    started = time.perf_counter()
    trainer(setting, []).fit(model, data)
    return {"seconds": time.perf_counter() - started, **judge(model.net, data)}


def pruned_runs(seed: int, setting: Setting) -> dict[str, Any]:
    """Train sparsely once, then search, cut and fine-tune for each budget."""
    data, result = FashionMNIST(), {}
    with tempfile.TemporaryDirectory() as folder:
        sparse = Path(folder) / "sparse.ckpt"
        for budget in setting.budgets:
            result[str(budget)] = pruned_run(seed, setting, budget, sparse, data)
        model = seeded_model(seed, setting)
        model.load_state_dict(torch.load(sparse, weights_only=True)["state_dict"])
    result["sparse"] = judge(model.net, data)
    for budget in setting.budgets:
        result[str(budget)]["before"] |= judge_controls(model.net, data, setting, budget, seed)
    return result


def pruned_run(
    seed: int, setting: Setting, budget: float, sparse: Path, data: FashionMNIST
) -> dict[str, Any]:
    """Fit with both callbacks, from the sparse checkpoint where there is one, and measure."""
    model, keep = seeded_model(seed, setting), KeepPruned()
    prune = GeneticPruneCallback(
        monitor="val_acc",
        mode="max",
        budget={"macs": budget},
        prune_epoch=setting.prune_epoch,
        population_size=setting.population_size,
        generations=setting.generations,
        max_evaluations=setting.max_evaluations,
        fitness_batches=setting.fitness_batches,
        recalibration_batches=setting.recalibration_batches,
        seed=seed,
        report=False,
    )
    save = KeepSparse(setting.prune_epoch, sparse)
    callbacks = [SparsityCallback(strength=setting.strength), prune, keep, save]
    resume = sparse if sparse.exists() else None
    started = time.perf_counter()
    trainer(setting, callbacks).fit(model, data, ckpt_path=resume)
    return {
        "seconds": time.perf_counter() - started,
        "resumed": resume is not None,
        "search_seconds": dict(getattr(prune, "timings", {})),
        "before": {"genetic search": test_accuracy(keep.net, data)},
        **judge(model.net, data),
    }


def judge_controls(
    net: nn.Module, data: FashionMNIST, setting: Setting, budget: float, seed: int
) -> dict[str, float]:
    """Return the test accuracy, before fine-tuning, of masks found without the genetic search."""
    surgery = ChannelSurgery(net, sample(data))
    limit = budget * surgery.macs(torch.ones(surgery.num_channels, dtype=torch.bool))
    draws = controls.random_widths(surgery, limit, np.random.default_rng(seed))
    masks = {
        "γ threshold": controls.threshold(surgery, limit),
        "uniform": controls.uniform(surgery, limit),
        "random search": best_of(
            itertools.islice(draws, setting.max_evaluations), surgery, net, data, setting
        ),
    }
    results = {}
    for name, mask in masks.items():
        with surgery.shrunk(mask):
            measure.recalibrate(net, recalibration(data, setting))
            results[name] = test_accuracy(net, data)
    return results


def best_of(
    masks: Iterable[Tensor],
    surgery: ChannelSurgery,
    net: nn.Module,
    data: FashionMNIST,
    setting: Setting,
) -> Tensor:
    """Return the mask with the highest accuracy on the images that the search judges by."""
    images, labels = data.parts["val"][: setting.fitness_batches * data.eval_batch_size]
    batches = recalibration(data, setting)

    def fitness(mask: Tensor) -> float:
        with surgery.shrunk(mask):
            measure.recalibrate(net, batches)
            return measure.accuracy(net, images, labels)

    return max(masks, key=fitness)


def judge(net: nn.Module, data: FashionMNIST) -> dict[str, float]:
    """Return validation and test accuracy and the costs of a network."""
    return {
        "val": measure.accuracy(net, *data.parts["val"].tensors),
        "test": test_accuracy(net, data),
        **measure.cost(net, sample(data)),
    }


def test_accuracy(net: nn.Module, data: FashionMNIST) -> float:
    """Return the accuracy on the 10,000 test images."""
    return measure.accuracy(net, *data.parts["test"].tensors)


def sample(data: FashionMNIST) -> Tensor:
    """Return one image as a batch."""
    data.setup("fit")
    return data.parts["val"].tensors[0][:1]


def recalibration(data: FashionMNIST, setting: Setting) -> list[Tensor]:
    """Return the first training images in as many batches as a candidate of the search gets."""
    images = data.parts["train"].tensors[0][: setting.recalibration_batches * data.batch_size]
    return list(images.split(data.batch_size))


def seeded_model(seed: int, setting: Setting) -> FashionClassifier:
    """Return a new model; the seed also decides the order of the batches that follow."""
    L.seed_everything(seed, verbose=False)
    return FashionClassifier(widths=setting.widths)


def trainer(setting: Setting, callbacks: list[L.Callback]) -> L.Trainer:
    """Return a silent Trainer for one whole fit."""
    return L.Trainer(
        max_epochs=setting.epochs,
        precision=setting.precision,
        limit_train_batches=setting.limit_train_batches,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def work(task: tuple[str, int, Setting]) -> tuple[str, int, dict[str, Any]]:
    """Do one task in a worker process."""
    kind, seed, setting = task
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    run = pruned_runs if kind == "pruned" else dense_run
    return kind, seed, run(seed, setting)


def main() -> None:
    """Run all seeds, write the JSON file, and put the tables into README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--quick", action="store_true", help="try the script; writes no table")
    options = parser.parse_args()
    setting = QUICK if options.quick else Setting()
    tasks = [(kind, seed, setting) for kind in ("pruned", "dense") for seed in options.seeds]
    results: dict[str, dict[str, Any]] = {str(seed): {} for seed in options.seeds}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        for kind, seed, result in pool.map(work, tasks):
            results[str(seed)][kind] = result
            print(f"seed {seed}, {kind}: {json.dumps(result, ensure_ascii=False)}", flush=True)
    record = {"setting": asdict(setting), "torch": torch.__version__, "seeds": results}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    if options.quick:
        print(text)
        return
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(update_readme(record))


if __name__ == "__main__":
    main()
