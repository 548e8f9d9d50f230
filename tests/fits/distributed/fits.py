"""Fits that one process and two processes can both do; as a script, the fits named as arguments.

Launched with `strategy="ddp"` (the script starts the second process itself) or by torchrun. Rank 0
prints one line, `RESULT ` and JSON, with what each rank has seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_slimga import GeneticPruneCallback, SparsityCallback
from lightning_slimga.callbacks.prune.run import PruningRun
from lightning_slimga.search import GeneticSearch
from tests.fits.distributed.networks import RANK, Failing, Net, forward_on_cpu

GLOBAL_BATCH = 16
SEARCHES: dict[str, dict[str, Any]] = {
    "raced": {"budget": {"macs": 0.5, "latency_ms": 1e9}, "generations": 6},
    "clocks": {"max_time": 1000},
    "frozen": {"recalibration_batches": 0},
    "rounds": {
        "budget": [{"macs": 0.75}, {"macs": 0.5}],
        "prune_epoch": None,
        "prune_epochs": [1, 2],
    },
    "front": {"budget": {"macs": 0.8}, "pick": "knee", "generations": 2},
}
"""What the search of a fit is told besides what all are told."""

NODES = int(os.environ.get("NODES", 1))


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
    if name == "raced":
        module.validation_images = 256
    arguments: dict[str, Any] = {
        "budget": {"macs": 0.5},
        "prune_epoch": 1,
        "population_size": 4,
        "generations": 3,
        "recalibration_batches": 2,
    }
    arguments |= SEARCHES.get(name, {})
    prune = GeneticPruneCallback("val_loss", mode="min", report=False, **arguments)
    watch = Watch()
    callbacks = [SparsityCallback(strength=1e-3), prune, watch]
    folder = os.environ.get("CHECKPOINTS")
    if folder:
        callbacks.append(ModelCheckpoint(folder, save_last=True))
    trainer = pl.Trainer(
        max_epochs=3,
        max_time={"hours": 1} if name == "timer" else None,
        accelerator="cpu",
        devices=processes // NODES,
        num_nodes=NODES if processes > 1 else 1,
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
    seen["front"] = None if prune.front is None else prune.front.state_dict()
    seen["weights"] = {n: p.tolist() for n, p in module.state_dict().items()}
    seen["seconds"] = prune.timings
    return seen


def disagreeing(name: str, *, processes: int) -> dict[str, Any]:
    """A fit in which rank 1 has chosen another mask than rank 0."""
    choose = PruningRun._choose

    def other(run: PruningRun, *arguments: Any) -> Any:
        mask = choose(run, *arguments)
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


def timer(name: str, *, processes: int) -> dict[str, Any]:
    """A fit whose Timer has run out on rank 0 alone, after six candidates."""
    judged = []
    tell = GeneticSearch.tell

    def counted(search: GeneticSearch, *arguments: Any) -> None:
        judged.append(arguments)
        tell(search, *arguments)

    def elapsed(*_: Any) -> float:
        return 1e6 if RANK == 0 and len(judged) >= 6 else 0.0

    with (
        patch.object(GeneticSearch, "tell", counted),
        patch.object(Timer, "time_elapsed", elapsed),
    ):
        seen = fit(name, processes=processes)
    return {**seen, "judged": len(judged)}


def synchronized(name: str, *, processes: int) -> dict[str, Any]:
    """A fit with SyncBatchNorm, which torch refuses to wrap and to train on CPUs."""
    with (
        patch.object(nn.SyncBatchNorm, "forward", forward_on_cpu),
        patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle"),
    ):
        return fit(name, processes=processes)


FITS = {
    "norm": fit,
    "failing": fit,
    "frozen": fit,
    "synchronized": synchronized,
    "clocks": clocks,
    "raced": fit,
    "rounds": fit,
    "front": fit,
    "timer": timer,
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
