"""What the search asks of the Trainer's strategy: one process or many, but one model."""

from __future__ import annotations

import gc
import weakref
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel

_T = TypeVar("_T")
_SHARDED = (
    "FSDPStrategy",
    "DeepSpeedStrategy",
    "ModelParallelStrategy",
    "XLAStrategy",
    "SingleDeviceXLAStrategy",
)


def refuse_unsupported_strategy(trainer: pl.Trainer) -> None:
    """Refuse strategies under which layers cannot become smaller in the middle of a fit.

    Args:
        trainer: the Trainer, at `setup` or later.

    Raises:
        MisconfigurationException: for FSDP, DeepSpeed, model parallel and XLA strategies, which own
            the parameters; and for DDP launched by spawn, fork or in a notebook, where the small
            model cannot return to the main process.
    """
    strategy = trainer.strategy
    names = [cls.__name__ for cls in type(strategy).__mro__]
    sharded = next((name for name in _SHARDED if name in names), None)
    if sharded:
        raise MisconfigurationException(
            f"`GeneticPruneCallback` cannot work with `{sharded}`, which holds the parameters in a"
            ' form of its own. Use `strategy="ddp"`, or prune in a separate run on one device.'
        )
    start_method = getattr(strategy, "_start_method", "popen")
    if start_method != "popen":
        raise MisconfigurationException(
            f"`GeneticPruneCallback` cannot work with processes started by {start_method!r}: at the"
            " end of `fit` the main process would load small weights into its full-size model. Use"
            ' `strategy="ddp"` in a script, or torchrun.'
        )


def rebuild_ddp(trainer: pl.Trainer) -> None:
    """Wrap the module anew for DistributedDataParallel; to be called after surgery on every rank.

    The old wrapper knows the removed parameters: without this, ranks drift apart, in part without
    an error. The new one sends rank 0's parameters and buffers to all ranks. Without
    DistributedDataParallel nothing happens.

    Args:
        trainer: the Trainer whose LightningModule has been cut.

    Raises:
        RuntimeError: if somebody else holds the old wrapper, whose hooks would remain active.
    """
    strategy = trainer.strategy
    if not isinstance(strategy.model, DistributedDataParallel):
        return
    wrapper = weakref.ref(strategy.model)
    strategy.model = strategy.lightning_module
    gc.collect()  # the wrapper is part of cycles, and its gradient hooks go with it
    if wrapper() is not None:
        raise RuntimeError(
            "The DistributedDataParallel wrapper of the full-size model is still referenced by"
            " other code, so it cannot be replaced after pruning. Don't keep `trainer.model` or"
            " `trainer.strategy.model`."
        )
    strategy.configure_ddp()  # type: ignore[attr-defined]


def broadcast(trainer: pl.Trainer, obj: _T) -> _T:
    """Give every rank rank 0's object.

    Args:
        trainer: the Trainer; every rank must make the call.
        obj: any picklable object.

    Returns:
        The object of rank 0.
    """
    return trainer.strategy.broadcast(obj, src=0)


def reduce_mean(trainer: pl.Trainer, value: Any) -> float:
    """The mean of a number over all ranks.

    Args:
        trainer: the Trainer; every rank must make the call.
        value: a number or a tensor of one element.

    Returns:
        The mean; the value itself where there is one process. NaN if any is NaN.
    """
    if trainer.world_size == 1:
        return float(value)
    device = trainer.strategy.root_device
    # float64 would be refused on MPS; on others it returns equal inputs unchanged.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    tensor = torch.as_tensor(value, dtype=dtype, device=device).clone()
    return float(trainer.strategy.reduce(tensor, reduce_op="mean"))
