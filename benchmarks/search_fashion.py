"""What the genetic search is worth on Fashion-MNIST: controls, fine-tuning, ablation.

    python -m benchmarks.search_fashion            # everything that is missing, then the tables
    python -m benchmarks.search_fashion --fresh    # everything anew
    python -m benchmarks.search_fashion --parts sparse --seeds 0 --workers 1

Each number of each seed is a task of its own and is written to results/search_fashion.json as soon
as it is known, so an interrupted run goes on where it was. Searches choose on validation images;
the test images are looked at once for each network that is reported.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import controls, search_tables
from benchmarks.search_ablations import PARTS, without
from benchmarks.search_controls import HillClimbing, RandomSearch
from benchmarks.search_networks import Mask, Setting, Workbench
from benchmarks.tasks import RESULTS, Key, Ledger, run
from examples.fashion_mnist import FashionMNIST
from lightning_slimga.search import GeneticSearch, Limits
from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.individual import decode_mask, encode_mask

NETWORKS = Path(tempfile.gettempdir()) / "slimga-search-networks"
EVALUATIONS = 216
SETTINGS = {
    "dense": Setting(share=0.35),
    "sparse": Setting(share=0.25, strength=2e-3),
}
CONTROLS = ("γ threshold", "γ per MAC", "uniform", "random search", "hill climbing")
BY_EFFECT = "random search, channels by effect"
ABLATION = (
    *(f"without {part.replace('_', ' ')}" for part in PARTS),
    "without recalibration",
    "without effects",
)
BY_GAMMA = (*CONTROLS, "without effects")
GENETIC = "genetic search"

ABLATED = 3  # so many of the seeds run the ablation
WHATS = ("network", "mask", "tuned", "ablation")


def plan(settings: list[str], seeds: list[str], whats: list[str]) -> list[Key]:
    """Return the tasks: (setting, seed, what is done, of which contender), first things first."""
    chosen = (GENETIC, *CONTROLS, BY_EFFECT)
    kinds = {"network": ("full size",), "mask": chosen, "ablation": ABLATION, "tuned": chosen}
    return [
        (setting, seed, what, contender)
        for parts in (("network", "mask"), ("tuned",), ("ablation",))
        for setting in settings
        for what in parts
        if what in whats
        for contender in kinds[what]
        for seed in (seeds[:ABLATED] if what == "ablation" else seeds)
    ]


def needs(key: Key) -> list[Key]:
    """Return what must be known before a task: the trained network, and the mask to be tuned."""
    setting, seed, what, contender = key
    network = [(setting, seed, "network", "full size")] if what != "network" else []
    mask = [(setting, seed, "mask", contender)] if what == "tuned" else []
    return [*network, *mask]


def work(key: Key, known: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Do one task and return what is to be written down.

    Args:
        key: the setting, the seed, what to do, and of which contender.
        known: what earlier tasks have found of this setting and seed.
        folder: where trained networks are kept.
    """
    setting, seed, what, contender = key
    started = time.process_time()
    bench = workbench(setting, int(seed), folder)
    if what == "network":
        everything = np.ones(bench.surgery.num_channels, dtype=np.bool_)
        test = bench.accuracy(everything, "test", recalibrate=False)
        result = {"test": test, "near_zero": bench.near_zero()}
    elif what == "tuned":
        mask = decode_mask(known["mask"][contender]["mask"], bench.surgery.num_channels)
        result = {"test": bench.fine_tuned(mask)}
    else:
        result = measured(bench, *find(bench, contender))
    return {**result, "cpu_seconds": round(time.process_time() - started, 1)}


@cache
def workbench(setting: str, seed: int, folder: Path) -> Workbench:
    """Return a network, trained or loaded; kept for the next task of this process."""
    return Workbench(SETTINGS[setting], seed, folder, images())


@cache
def images() -> FashionMNIST:
    """Return the images, read once per process."""
    return FashionMNIST()


def find(bench: Workbench, contender: str) -> tuple[Mask, dict[str, Any]]:
    """Return the mask that a contender chooses, and what is known about the choice."""
    rankings = {
        "γ threshold": controls.threshold,
        "γ per MAC": controls.per_mac,
        "uniform": controls.uniform,
    }
    if contender in rankings:
        return rankings[contender](bench.surgery, bench.limit).numpy(), {}
    recalibrate = contender != "without recalibration"
    space = bench.space(effects=contender not in BY_GAMMA)
    search = searches()[contender](space, seed=bench.seed)
    while not search.done:
        asked = search.ask()
        search.tell(asked, [bench.fitness(mask, recalibrate=recalibrate) for mask in asked])
    finalists = [mask for mask, _ in search.elite(bench.setting.finalists)]
    chosen, _ = bench.best_of(finalists, recalibrate=recalibrate)
    known: dict[str, Any] = {
        "evaluations": search.evaluations,
        "search_fitness": search.best[1],
        "best_by_generation": [entry["best"] for entry in search.history],
    }
    if isinstance(search, GeneticSearch):
        known["seeds"] = {n: v for n, v in search.seeds.items() if not n.startswith("random")}
    return chosen, known


def searches() -> dict[str, Callable[..., AskTellSearch]]:
    """Return what builds each search, by name."""
    limits = Limits(generations=EVALUATIONS, max_evaluations=EVALUATIONS)
    genetic = partial(GeneticSearch, limits=limits)
    chance = partial(RandomSearch, limits=limits)
    return {
        "random search": chance,
        BY_EFFECT: chance,
        "hill climbing": partial(HillClimbing, limits=limits),
        GENETIC: genetic,
        "without recalibration": genetic,
        "without effects": genetic,
        **{
            f"without {part.replace('_', ' ')}": partial(without, part, limits=limits)
            for part in PARTS
        },
    }


def measured(bench: Workbench, mask: Mask, known: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracies and the widths of a mask, with what else is known."""
    return {
        "validation": bench.accuracy(mask, "val"),
        "test": bench.accuracy(mask, "test"),
        "macs": bench.surgery.macs(mask),
        "widths": bench.surgery.counts(mask).tolist(),
        "mask": encode_mask(mask),
        **known,
    }


def main() -> None:
    """Do what is missing and write the tables into docs/search.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", default=list("012345"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--parts", nargs="+", choices=WHATS, default=list(WHATS))
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--networks", type=Path, default=NETWORKS, help="trained weights")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results and weights")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.networks, ignore_errors=True)
    header = {
        "settings": {name: asdict(setting) for name, setting in SETTINGS.items()},
        "evaluations": EVALUATIONS,
    }
    ledger = Ledger(RESULTS / "search_fashion.json", header, fresh=options.fresh)
    tasks = plan(options.settings, options.seeds, options.parts)
    run(tasks, needs, partial(work, folder=options.networks), ledger, options.workers)
    print(search_tables.update(ledger.record))


if __name__ == "__main__":
    main()
