"""The network of these fits, one that fails, and a SyncBatchNorm for CPUs."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_slimga import is_candidate
from tests.fits.small_fit import data

RANK = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
NUM_IMAGES = 64


class Net(pl.LightningModule):
    """Logs its metrics as plain tensors, without `sync_dist`.

    Args:
        frozen: batch norm uses and keeps its running statistics also in training, so that the
            gradient of a batch is the mean of the gradients of its parts.
        in_order: of two processes, rank r takes images r, r + 2, ...; else as Lightning shards.
        batch_size: per process.
    """

    validation_images = 32

    def __init__(self, *, frozen: bool, in_order: bool, batch_size: int) -> None:
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
        self.frozen, self.in_order, self.batch_size = frozen, in_order, batch_size
        self.train()  # Lightning keeps the modes that it finds

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        for module in self.body:
            if self.frozen and isinstance(module, nn.BatchNorm2d):
                module.train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self) -> Any:
        return self.loader(data(NUM_IMAGES, 0))

    def val_dataloader(self) -> Any:
        return self.loader(data(self.validation_images, 1))

    def loader(self, part: TensorDataset) -> Any:
        sampler = None
        if self.in_order and self.trainer.world_size > 1:
            sampler = DistributedSampler(part, shuffle=False)
        return DataLoader(part, batch_size=self.batch_size, sampler=sampler)


class Failing(Net):
    """Raises while a candidate is judged, on one rank, or receives a signal there."""

    failing_rank = int(os.environ.get("FAILING_RANK", 1))
    calls: ClassVar[list[int]] = []  # what an instance counts, an evaluation takes back

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.calls += [batch_idx] * is_candidate()
        if self.failing_rank == RANK and len(self.calls) == 3 and is_candidate():
            print(f"STRUCK {time.time()}", flush=True)
            if "SIGNAL" not in os.environ:
                raise ValueError("a mistake of the user's")
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss, sync_dist="SYNC" in os.environ)


def forward_on_cpu(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """What SyncBatchNorm computes, written with collectives that gloo has; all batches as large."""
    group = self.process_group or torch.distributed.group.WORLD
    ranks = torch.distributed.get_world_size(group)
    if not (self.training and ranks > 1):
        return BatchNorm.forward(self, x)
    count = ranks * x.numel() // x.shape[1]
    mean = all_reduce(x.sum((0, 2, 3)), group=group) / count
    centred = x - mean.view(1, -1, 1, 1)
    variance = all_reduce(centred.square().sum((0, 2, 3)), group=group) / count
    with torch.no_grad():
        self.num_batches_tracked += 1
        share = self.momentum or 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)
    scale = self.weight / (variance + self.eps).sqrt()
    return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
