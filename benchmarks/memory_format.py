"""What a candidate costs with convolutions in channels-last memory format, and without.

    python -m benchmarks.memory_format                  # a few minutes
    python -m benchmarks.memory_format resnet50

Torchvision's networks at 64 pixels, cut at random to half of their MACs: 640 images to validate,
4 batches of 32 to recalibrate, processor time of one thread. `plain` masks the full network and
calls `trainer.validate`, without recalibration, with the images in memory.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.evaluation_cost import quiet, settings
from lightning_slimga import ChannelSurgery
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from lightning_slimga.callbacks.prune.result import PruningResult
from lightning_slimga.callbacks.prune.survey import Survey
from lightning_slimga.surgery.masking import Mask

NETWORKS = ("resnet18", "mobilenet_v2", "squeezenet1_1", "vgg11_bn", "efficientnet_b0")
SIZE, BATCH, CANDIDATES = 64, 32, 4


class Classifier(L.LightningModule):
    """A network of torchvision and random images."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = torchvision.models.get_model(name, weights=None, num_classes=10)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD, which hardly has a step to do."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        """Return random images."""
        return _images(8)

    def val_dataloader(self) -> DataLoader:
        """Return others."""
        return _images(20)


class Comparison(L.Callback):
    """Measures where the search runs."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
        """Measure seconds a candidate in both formats, and of the plain way."""
        survey = Survey.of(trainer, pl_module, settings(None))
        masks = [_half(survey.surgery, seed) for seed in range(CANDIDATES)]
        self.possible, self.seconds = survey.channels_last, {}
        for name, last in ("usual", []), ("channels-last", survey.channels_last):
            surveyed = replace(survey, channels_last=last)
            candidates = CandidateEvaluation(trainer, surveyed, PruningResult())
            self.seconds[name] = _seconds([partial(candidates.fitness, mask) for mask in masks])
        trainer.should_stop = True


def plain(name: str) -> float:
    """Return seconds a candidate of masking and `trainer.validate`."""
    model, trainer = Classifier(name), quiet()
    data = model.val_dataloader()
    surgery = ChannelSurgery(model.net, torch.zeros(2, 3, SIZE, SIZE))
    with surgery.masked(_half(surgery, 0)):
        return _seconds([lambda: trainer.validate(model, data, verbose=False)] * 2)


def _half(surgery: ChannelSurgery, seed: int) -> Mask:
    """Return a mask of random widths that keeps about half of the MACs."""
    random = np.random.default_rng(seed)
    everything = surgery.macs(np.ones(surgery.num_channels, dtype=bool))
    while True:
        keep = np.zeros(surgery.num_channels, dtype=bool)
        for layer in surgery.layers:
            width = layer.num_channels
            kept = random.permutation(width)[: max(1, int(width * random.uniform(0.45, 0.95)))]
            keep[layer.slice.start + kept] = True
        if abs(surgery.macs(keep) / everything - 0.5) < 0.04:
            return keep


def _seconds(ways: list[Callable[[], object]]) -> float:
    """Return the mean processor time of some calls, after a first one that warms up."""
    ways[0]()
    started = time.process_time()
    for way in ways:
        way()
    return (time.process_time() - started) / len(ways)


def _images(batches: int) -> DataLoader:
    count = batches * BATCH
    images, labels = torch.randn(count, 3, SIZE, SIZE), torch.randint(10, (count,))
    return DataLoader(TensorDataset(images, labels), batch_size=BATCH)


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="names in torchvision")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in parser.parse_args().networks:
        L.seed_everything(0, verbose=False)
        comparison = Comparison()
        fit = quiet(max_epochs=2, limit_train_batches=4, callbacks=[comparison])
        fit.fit(Classifier(name))
        usual, last, other = *comparison.seconds.values(), plain(name)
        print(
            f"{name:16s} usual {usual:.2f} s, channels-last {last:.2f} s: {usual / last:.2f} times;"
            f" plain {other:.2f} s: {other / last:.2f} times"
            f"{'' if comparison.possible else ' (not possible)'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
