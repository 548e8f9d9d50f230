"""Fits that one process and two processes can both do; as a script, the fits named as arguments.

Launched with `strategy="ddp"` (the script starts the second process itself) or by torchrun. Rank 0
prints one line, `RESULT ` and JSON, with what each rank has seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import warnings
from typing import Any, ClassVar
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_slimga import GeneticPruneCallback, SparsityCallback
from lightning_slimga.callbacks.pruning_run import PruningRun
from lightning_slimga.search import GeneticSearch

RANK = int(os.environ.get("LOCAL_RANK", 0))
NUM_IMAGES, GLOBAL_BATCH = 64, 16


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    x = torch.randn(count, 2, 6, 6, generator=generator)
    for k in range(4):
        x[y == k, k % 2, 3 * (k // 2) : 3 * (k // 2) + 3] += 1.0
    return TensorDataset(x, y)


class Net(pl.LightningModule):
    """Logs its metrics as plain tensors, without `sync_dist`.

    Args:
        frozen: batch norm uses and keeps its running statistics also in training, so that the
            gradient of a batch is the mean of the gradients of its parts.
        in_order: of two processes, rank r takes images r, r + 2, ...; else as Lightning shards.
        batch_size: per process.
    """

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
        return self.loader(images(NUM_IMAGES, 0))

    def val_dataloader(self) -> Any:
        return self.loader(images(32, 1))

    def loader(self, data: TensorDataset) -> Any:
        sampler = None
        if self.in_order and self.trainer.world_size > 1:
            sampler = DistributedSampler(data, shuffle=False)
        return DataLoader(data, batch_size=self.batch_size, sampler=sampler)


class Watch(pl.Callback):
    """Compares the ranks right after surgery, after every step, and at the end."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"steps": []}

    def on_surgery(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        self.seen["plan"] = hashed(plan.to_json())
        self.seen["surgery"] = state_hashes(pl_module)
        norm = pl_module.body[1]
        self.seen["statistics"] = [norm.running_mean.tolist(), norm.running_var.tolist()]
        conv = pl_module.body[0]
        self.seen["conv"] = [conv.weight.tolist(), conv.bias.tolist()]
        self.seen["norm"] = type(norm).__name__

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if "surgery" in self.seen:
            parameters = dict(pl_module.named_parameters())
            self.seen["steps"].append(hashed(*(p.detach() for p in parameters.values())))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen["end"] = state_hashes(pl_module)


def hashed(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(
            value.cpu().numpy().tobytes() if isinstance(value, Tensor) else value.encode()
        )
    return digest.hexdigest()[:12]


def state_hashes(module: nn.Module) -> dict[str, str]:
    """One hash for the parameters, one for the buffers, one for the shapes."""
    parameters = [p.detach() for p in module.parameters()]
    shapes = str([tuple(p.shape) for p in parameters])
    return {
        "parameters": hashed(*parameters),
        "buffers": hashed(*module.buffers()),
        "shapes": hashed(shapes),
    }


def fit(name: str, *, processes: int) -> dict[str, Any]:
    """Run one of the fits, and return what this rank has seen of it."""
    frozen, in_order = name == "frozen", name in ("frozen", "synchronized")
    network = Failing if name == "failing" else Net
    batch_size = GLOBAL_BATCH // processes
    module = network(frozen=frozen, in_order=in_order, batch_size=batch_size)
    prune = GeneticPruneCallback(
        "val_loss",
        mode="min",
        budget={"macs": 0.5},
        prune_epoch=1,
        population_size=4,
        generations=3,
        max_time=1000 if name == "clocks" else None,
        recalibration_batches=0 if frozen else 2,
        report=False,
    )
    watch = Watch()
    callbacks = [SparsityCallback(strength=1e-3), prune, watch]
    folder = os.environ.get("CHECKPOINTS")
    if folder:
        callbacks.append(ModelCheckpoint(folder, save_last=True))
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=bool(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=not in_order,
        sync_batchnorm=name == "synchronized",
    )
    trainer.fit(module, ckpt_path="last" if folder else None)
    seen = watch.seen
    seen["history"] = [{k: v for k, v in e.items() if k != "seconds"} for e in prune.history]
    seen["weights"] = {n: p.tolist() for n, p in module.state_dict().items()}
    seen["seconds"] = prune.timings
    return seen


def disagreeing(name: str, *, processes: int) -> dict[str, Any]:
    """A fit in which rank 1 has chosen another mask than rank 0."""
    choose = PruningRun._choose

    def other(run: PruningRun, search: GeneticSearch) -> Any:
        mask = choose(run, search)
        if RANK == 1:
            mask[:] = True
        return mask

    PruningRun._choose = other  # type: ignore[method-assign]
    try:
        fit(name, processes=processes)
    except RuntimeError as error:
        return {"error": str(error)}
    finally:
        PruningRun._choose = choose  # type: ignore[method-assign]
    return {"error": None}


def clocks(name: str, *, processes: int) -> dict[str, Any]:
    """A fit whose time is up on rank 0 alone, after six candidates."""
    seconds = GeneticSearch.seconds
    GeneticSearch.seconds = property(  # type: ignore[method-assign, assignment]
        lambda self: 2000.0 if RANK == 0 and self.evaluations >= 6 else 0.0
    )
    try:
        return fit(name, processes=processes)
    finally:
        GeneticSearch.seconds = seconds  # type: ignore[method-assign]


def synchronized(name: str, *, processes: int) -> dict[str, Any]:
    """A fit with SyncBatchNorm, which torch refuses to wrap and to train on CPUs."""
    with (
        patch.object(nn.SyncBatchNorm, "forward", forward_on_cpu),
        patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle"),
    ):
        return fit(name, processes=processes)


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


class Failing(Net):
    """Raises while a candidate is judged, on one rank, or receives a signal there."""

    failing_rank = int(os.environ.get("FAILING_RANK", 1))
    calls: ClassVar[list[int]] = []  # what an instance counts, an evaluation takes back

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.calls.append(batch_idx)
        if self.failing_rank == RANK and len(self.calls) == 12:
            print(f"STRUCK {time.time()}", flush=True)
            if "SIGNAL" not in os.environ:
                raise ValueError("a mistake of the user's")
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss, sync_dist="SYNC" in os.environ)


FITS = {
    "norm": fit,
    "failing": fit,
    "frozen": fit,
    "synchronized": synchronized,
    "clocks": clocks,
    "disagreeing": disagreeing,
}


def gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {name: gathered(FITS[name](name, processes=2)) for name in names}
    if RANK == 0:
        print("RESULT " + json.dumps(results), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
