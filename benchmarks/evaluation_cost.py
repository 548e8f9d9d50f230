"""What one evaluation costs beside its forward passes, and beside the plain way.

    python -m benchmarks.evaluation_cost    # a few minutes

On the Fashion-MNIST ResNet of the examples at half of its MACs. `ours` is what the search does for
a candidate: cut, recalibrate, validate, restore. `forward` are the forward passes in it alone: the
small network over the same recalibration and validation batches, in a loop that does nothing else,
with weights in the same memory format.
`plain` is what one would write without this package: zero the channels of the full network, and
call `trainer.validate`. They take turns, so that other work on the machine meets all of them, and
processor time is compared.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import islice
from typing import Any

import lightning as L
import torch
from torch import Tensor

from benchmarks import controls
from examples.fashion_mnist import FashionClassifier, FashionMNIST
from lightning_slimga import ChannelSurgery, GeneticPruneCallback
from lightning_slimga.callbacks.internals import training_batches
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from lightning_slimga.callbacks.prune.result import PruningResult
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.callbacks.prune.survey import Survey
from lightning_slimga.running.calls import Call
from lightning_slimga.running.recalibration import recalibrate
from lightning_slimga.surgery.channels_last import channels_last

BUDGET = 0.5


def quiet(accelerator: str = "cpu", **arguments: Any) -> L.Trainer:
    """Return a Trainer that says and keeps nothing."""
    return L.Trainer(
        accelerator=accelerator,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def pruning(**arguments: Any) -> GeneticPruneCallback:
    """Return the callback as all measurements have it; what is not named is its default."""
    return GeneticPruneCallback(
        "val_acc", mode="max", budget={"macs": BUDGET}, prune_epoch=1, **arguments
    )


def settings(fitness_batches: int | None) -> SearchSettings:
    """Return what the callback makes of its arguments."""
    return pruning(fitness_batches=fitness_batches, racing=False).settings


class Comparison(L.Callback):
    """Measures in the place where the search runs."""

    def __init__(self, repeat: int, fitness_batches: int | None) -> None:
        self.repeat, self.fitness_batches = repeat, fitness_batches
        self.seconds: dict[str, list[float]] = {"ours": [], "forward": [], "plain": []}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        """Measure all ways in turn."""
        survey = Survey.of(trainer, pl_module, settings(self.fitness_batches))
        surgery = survey.surgery
        mask = uniform_mask(surgery)
        candidates = CandidateEvaluation(trainer, survey, PruningResult())
        batches = training_batches(trainer, pl_module, 4, seed=0)
        images = [batch[0] for batch, _, _ in survey.evaluator._kept or []]
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda: candidates.fitness(mask),
            "forward": _forward(surgery, mask, [x for x, _ in batches], images),
            "plain": plain_way(pl_module, FashionMNIST(), mask, self.fitness_batches),
        }
        for turn in range(self.repeat + 1):
            for name, way in ways.items():
                spent = way() if name == "forward" else timed(way)
                if turn:  # the first one warms up
                    self.seconds[name].append(float(spent))  # type: ignore[arg-type]
        trainer.should_stop = True


def timed(way: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Return the seconds that it takes, the processor's unless another clock is given."""
    started = clock()
    way()
    return clock() - started


def _forward(
    surgery: ChannelSurgery, mask: Any, training: list[Tensor], validation: list[Tensor]
) -> Callable[[], float]:
    """Return what takes the seconds of the forward passes, with the network cut beforehand."""
    model = surgery.model

    def passes() -> None:
        with torch.no_grad():
            model.train()
            for images in training:
                model(images)
            model.eval()
            for images in validation:
                model(images)

    def run() -> float:
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with surgery.shrunk(mask), channels_last(model):
            seconds = timed(passes)
        model.train()
        for buffer, content in buffers:
            buffer.copy_(content)
        return seconds

    return run


def plain_way(
    pl_module: L.LightningModule,
    data: FashionMNIST,
    mask: Any = None,
    batches: int | None = None,
    accelerator: str = "cpu",
    memory_format: torch.memory_format = torch.channels_last,
    training: int = 0,
) -> Callable[[], None]:
    """Return what evaluates a candidate by masking a copy of a module and `trainer.validate`.

    Args:
        pl_module: gives the weights.
        data: gives the validation images.
        mask: the candidate; None: a uniform one.
        batches: validation batches; None: all.
        accelerator: of the Trainer.
        memory_format: of the copy's weights.
        training: batches of training images from which batch norm takes its statistics first; 0:
            it keeps those of the full network.
    """
    trainer = quiet(accelerator, limit_val_batches=1.0 if batches is None else batches)
    model = FashionClassifier()
    model.load_state_dict(pl_module.state_dict())
    model.net.to(memory_format=memory_format)
    own = ChannelSurgery(model, torch.zeros(2, 1, 28, 28))
    chosen = uniform_mask(own) if mask is None else mask
    data.prepare_data()
    data.setup("fit")
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    images = [x.to(device) for x, _ in islice(data.train_dataloader(), training)]
    calls = [Call("", (x,)) for x in images]

    def run() -> None:
        with own.masked(chosen), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recalibrate(model.to(device), calls)
            trainer.validate(model, data, verbose=False)

    return run


def uniform_mask(surgery: ChannelSurgery) -> Any:
    """Return the uniform cut within the budget."""
    everything = torch.ones(surgery.num_channels, dtype=torch.bool)
    return controls.uniform(surgery, int(surgery.macs(everything) * BUDGET)).numpy()


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for fitness_batches in (2, None):
        comparison = Comparison(options.repeat, fitness_batches)
        trainer = quiet(max_epochs=1, limit_train_batches=20, callbacks=[comparison])
        trainer.fit(FashionClassifier(), FashionMNIST())
        ours, forward, plain = (statistics.median(v) for v in comparison.seconds.values())
        rounds = zip(*comparison.seconds.values(), strict=True)
        ratios = [(o / f, p / o) for o, f, p in rounds]
        beside = [statistics.median(column) for column in zip(*ratios, strict=True)]
        print(
            f"{fitness_batches or 'all'} batches of 1000: ours {1e3 * ours:.0f} ms, forward"
            f" {1e3 * forward:.0f} ms, plain {1e3 * plain:.0f} ms; ours / forward {beside[0]:.2f},"
            f" {1 / ours:.2f} candidates a second, {beside[1]:.2f} times the plain way's",
            flush=True,
        )


if __name__ == "__main__":
    main()
