"""Run parts of a user's Trainer so that nobody else notices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler

from lightning_slimga.running.model_state import preserved
from lightning_slimga.running.swapped import swapped
from lightning_slimga.running.torch_settings import eager

_CHECKPOINT_HOOKS = ("on_save_checkpoint", "on_load_checkpoint")
_TRACELESS: WeakSet[pl.Trainer] = WeakSet()
"""Trainers whose fit is being kept as it is."""
_LOGGER_PLACES = ("name", "version", "save_dir", "root_dir", "log_dir")


class MutedCallback:
    """A callback that answers questions and checkpoints, but hears no other hook.

    It passes for an instance of the callback's own class, since user code finds callbacks by
    `isinstance`. A checkpoint that a signal handler writes meanwhile still gets the callback's
    state.
    """

    def __init__(self, callback: Any) -> None:
        self._callback = callback

    @property  # type: ignore[misc]  # read-only
    def __class__(self) -> Any:
        return type(self._callback)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_") and name not in _CHECKPOINT_HOOKS:
            return None  # the Trainer skips hooks that are not callable
        return getattr(self._callback, name)


class MutedLogger(DummyLogger):
    """A logger that swallows everything, but still says where its run lives.

    Args:
        logger: the logger that it stands for; it passes for an instance of the same class.
    """

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    @property  # type: ignore[misc]  # read-only
    def __class__(self) -> Any:
        return type(self._logger)

    def __getattribute__(self, name: str) -> Any:
        if name in _LOGGER_PLACES:
            return getattr(object.__getattribute__(self, "_logger"), name)
        return super().__getattribute__(name)


def in_stage(trainer: pl.Trainer, stage: str) -> AbstractContextManager[None]:
    """Let the Trainer be in a stage ("train" or "validate") for a while."""
    kind: Any = type(trainer.state.stage)
    return swapped(trainer.state, stage=kind(stage))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's generators for a while, and restore the user's streams.

    (Lightning's `isolate_rng` does not restore them after an exception.)
    """
    cuda = torch.cuda.is_available()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def traceless(
    trainer: pl.Trainer, *, seed: int = 0, buffers: bool = True, together: bool = False
) -> Iterator[None]:
    """Let the LightningModule run without a trace in anything that the fit holds.

    As before on exit, also after an exception: random number generators, and what
    :func:`~lightning_slimga.running.model_state.preserved` covers of the LightningModule (buffers,
    train/eval flags, plain attributes, states of torchmetrics objects, gradients) and of
    optimizers, schedulers, callbacks, data module and loaders (counters, rates, containers,
    generators). Within another one it leaves all that to the outer one: a candidate, recalibrated
    and validated, costs one look at everything.

    Args:
        trainer: a Trainer inside `fit`.
        seed: start of the global random number generators meanwhile, so that each run sees the
            same.
        buffers: whether the module's buffers come back, too.
        together: whether all ranks run the module, and equally often: then `SyncBatchNorm` takes
            the statistics of all.
    """
    if trainer in _TRACELESS:
        with seeded(seed):
            yield
        return
    beside = [
        *trainer.optimizers,
        *(config.scheduler for config in trainer.lr_scheduler_configs),
        *trainer.callbacks,  # type: ignore[attr-defined]
        getattr(trainer, "datamodule", None),
        trainer.train_dataloader,
        trainer.val_dataloaders,
    ]
    module = trainer.lightning_module
    with seeded(seed), preserved(module, beside=beside, buffers=buffers, together=together):
        _TRACELESS.add(trainer)
        try:
            yield
        finally:
            _TRACELESS.discard(trainer)


@contextmanager
def muted(trainer: pl.Trainer, *, seed: int = 0) -> Iterator[None]:
    """Let the LightningModule run under its Trainer without a trace.

    On exit, also after an exception, these are as they were: callbacks, loggers, profiler, logged
    metrics, the stop flag, and all that :func:`traceless` covers. Meanwhile steps go around the
    DistributedDataParallel wrapper, whose work belongs to training, and compiled code runs
    uncompiled.

    Args:
        trainer: a Trainer inside `fit`.
        seed: start of all random number generators meanwhile, so that each run sees the same.
    """
    replaced = {
        "callbacks": [MutedCallback(callback) for callback in trainer.callbacks],  # type: ignore[attr-defined]
        "loggers": [MutedLogger(logger) for logger in trainer.loggers],
        "profiler": PassThroughProfiler(),
        "_logger_connector": type(trainer._logger_connector)(trainer),
        "should_stop": trainer.should_stop,
        "_last_val_time": 0.0,
    }
    module = trainer.lightning_module
    with ExitStack() as stack:
        stack.enter_context(traceless(trainer, seed=seed))
        stack.enter_context(eager())
        stack.enter_context(swapped(trainer, **replaced))
        if trainer.strategy.model is not module:
            stack.enter_context(swapped(trainer.strategy, model=module))
        yield
