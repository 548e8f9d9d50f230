"""The trained networks that the search benchmark cuts, and what is measured of their masks."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import measure
from examples.fashion_mnist import FashionMNIST, SmallResNet
from lightning_slimga import ChannelSurgery
from lightning_slimga.search import Budget, SearchSpace
from lightning_slimga.sparsity.penalties import L1Half

Mask = NDArray[np.bool_]
WIDTHS = (24, 48, 96)
SMALL_BATCH = 250
"""Images in a batch without gradients; larger ones leave the caches of a core."""


@dataclass(frozen=True)
class Setting:
    """How a network is trained, and how much of it may stay.

    Attributes:
        share: MACs kept, of those of the full network.
        strength: λ of the L1/2 penalty on γ; 0 is dense training.
        epochs: of training, one cycle of the learning rate.
        fitness_images: validation images that a candidate is judged by.
        recalibration_batches: of `SMALL_BATCH` training images, before each judgement.
        finalists: best candidates of a search that are judged again on all validation images.
        fine_tuning: epochs after the cut, where that is measured.
    """

    share: float
    strength: float = 0.0
    epochs: int = 5
    fitness_images: int = 2000
    recalibration_batches: int = 3
    finalists: int = 5
    fine_tuning: int = 1


class Workbench:
    """A trained network with its data.

    Args:
        setting: how it was trained; trains it now if there are no weights of it in `folder`.
        seed: of the initial weights and the order of the batches.
        folder: where trained weights are kept.
        data: the images.
    """

    def __init__(self, setting: Setting, seed: int, folder: Path, data: FashionMNIST) -> None:
        data.setup("fit")
        self.setting, self.seed, self.data = setting, seed, data
        self.path = folder / f"strength{setting.strength:g}-epochs{setting.epochs}-seed{seed}.pt"
        torch.manual_seed(seed)
        self.net = SmallResNet(WIDTHS).to(memory_format=torch.channels_last)
        if self.path.exists():
            self.net.load_state_dict(torch.load(self.path, weights_only=True))
        else:
            train(self.net, data, epochs=setting.epochs, strength=setting.strength, seed=seed)
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(f".{os.getpid()}")
            torch.save(self.net.state_dict(), unfinished)
            unfinished.replace(self.path)
        train_images = data.parts["train"].tensors[0]
        wanted = setting.recalibration_batches * SMALL_BATCH
        self.recalibration = train_images[:wanted].split(SMALL_BATCH)
        self.surgery = ChannelSurgery(self.net, train_images[:1])
        everything = np.ones(self.surgery.num_channels, dtype=np.bool_)
        self.limit = setting.share * self.surgery.macs(everything)

    def space(self, *, effects: bool) -> SearchSpace:
        """Return what is searched: the masks under the setting's share of the MACs.

        Args:
            effects: tell the search the effects of the channels; otherwise |γ| alone.
        """
        layers = [(layer.name, layer.slice) for layer in self.surgery.layers]
        budget = Budget("macs", self.limit, self.surgery.cost.macs)
        known = self.surgery.effects() if effects else None
        return SearchSpace(layers, self.surgery.scores(), [budget], effects=known)

    def accuracy(
        self, mask: Mask, part: str, count: int | None = None, *, recalibrate: bool = True
    ) -> float:
        """Return the accuracy of the cut network on the first `count` images of a part."""
        images, labels = self.data.parts[part].tensors
        saved = copy.deepcopy(list(self.net.buffers()))
        with self.surgery.shrunk(mask):
            if recalibrate:
                measure.recalibrate(self.net, self.recalibration)
            result = measure.accuracy(self.net, images[:count], labels[:count], SMALL_BATCH)
        for buffer, content in zip(self.net.buffers(), saved, strict=True):
            buffer.copy_(content)
        return result

    def fitness(self, mask: Mask, *, recalibrate: bool = True) -> float:
        """Return what a search is told about a mask; in bfloat16, which takes 3/4 of the time."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.accuracy(mask, "val", self.setting.fitness_images, recalibrate=recalibrate)

    def best_of(self, masks: Iterable[Mask], *, recalibrate: bool = True) -> tuple[Mask, float]:
        """Return the mask with the highest accuracy on all validation images, and that."""
        rated = [(self.accuracy(m, "val", recalibrate=recalibrate), m) for m in masks]
        value, mask = max(rated, key=lambda pair: pair[0])
        return mask, value

    def fine_tuned(self, mask: Mask) -> float:
        """Return the test accuracy after cutting a copy and training it without a penalty."""
        net = copy.deepcopy(self.net)
        ChannelSurgery(net, self.recalibration[0][:1]).apply(mask)
        measure.recalibrate(net, self.recalibration)
        train(
            net, self.data, epochs=self.setting.fine_tuning, strength=0.0, seed=self.seed, lr=0.02
        )
        return measure.accuracy(net, *self.data.parts["test"].tensors, SMALL_BATCH)

    def near_zero(self) -> float:
        """Return the share of γ below 0.01."""
        norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]
        gamma = torch.cat([norm.weight.detach() for norm in norms])
        return float((gamma.abs() < 0.01).float().mean())


def train(
    net: nn.Module,
    data: FashionMNIST,
    *,
    epochs: int,
    strength: float,
    seed: int,
    lr: float = 0.1,
) -> None:
    """Train with SGD and one cycle of the learning rate, in bfloat16 where autocast takes it.

    Args:
        net: trained in place.
        data: its training images.
        epochs: over all of them.
        strength: λ of the L1/2 penalty on the γ of batch norm, added as a sub-gradient.
        seed: decides the order of the images.
        lr: the highest learning rate.
    """
    images, labels = data.parts["train"].tensors
    steps = len(images) // data.batch_size
    optimizer = torch.optim.SGD(
        net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps, pct_start=0.2)
    gammas = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    order = torch.Generator().manual_seed(seed)
    penalty = L1Half()
    net.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(images), generator=order)[: steps * data.batch_size]
        for rows in shuffled.split(data.batch_size):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            if strength:
                pull(gammas, penalty, strength)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def pull(gammas: list[Tensor], penalty: L1Half, strength: float) -> None:
    """Add λ ∂R/∂γ to the gradients."""
    for gamma in gammas:
        gamma.grad.add_(penalty.gradient(gamma), alpha=strength)
