"""The user's own validation as a function: no argument, one number, no trace."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from lightning_slimga.callbacks.internals.batches import (
    Triple,
    private_copy,
    tensor_bytes,
    to_device,
    validation_data,
)
from lightning_slimga.callbacks.internals.quiet import in_stage, muted
from lightning_slimga.callbacks.internals.results import SettledResults
from lightning_slimga.callbacks.internals.strategy import reduce_mean
from lightning_slimga.running.swapped import swapped

StopRule = Callable[[int, Callable[[], float]], bool]
"""Called after each batch with the number of batches done and a function that computes the metric
of these batches; True ends the evaluation."""


class FitnessEvaluator:
    """Evaluates the model, as it is at each call, by the fit's own validation.

    A call runs the LightningModule's `validation_step` and validation hooks over the Trainer's own
    validation data, in a second evaluation loop of the Trainer's class, and reads the metric where
    `ModelCheckpoint` would read it. Nothing else learns of it: see
    :func:`~lightning_slimga.callbacks.internals.quiet.muted`. Every call sees the same batches and
    the same random numbers, and a shuffling loader is shuffled once.

    Batches are kept on the device, after the batch transfer hooks, as long as they need no more
    than `max_cache_bytes` (nor half of the free memory of a CUDA device); otherwise each call loads
    them anew. A step gets copies of kept batches, which it may change.

    Under a distributed strategy every rank must make each call; the metric is averaged over the
    ranks, which changes nothing if the user has synchronised it. The steps do not pass through the
    DistributedDataParallel wrapper, so buffers are those of each rank.

    Args:
        trainer: a Trainer inside `fit`.
        pl_module: the LightningModule of that fit.
        monitor: name of the metric, as in `trainer.callback_metrics`.
        limit_batches: batches per validation loader, as a number >= 1 or as a fraction in (0, 1] of
            what the Trainer uses; spread evenly over them where the data set has indices, else the
            first ones. None: all that the Trainer uses.
        max_cache_bytes: upper bound of the memory that kept batches take; 0 keeps none.
        shuffled: run the batches of each loader in a random order, drawn once, so that the first
            ones are a sample of all.

    Raises:
        MisconfigurationException: if the fit has no validation, or has it without data.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        monitor: str,
        *,
        limit_batches: int | float | None = None,
        max_cache_bytes: int = 2 * 1024**3,
        shuffled: bool = False,
    ) -> None:
        require_validation(trainer, pl_module)
        self._trainer, self._module, self._monitor = trainer, pl_module, monitor
        self._load, self._max_batches = validation_data(trainer, limit_batches, shuffled=shuffled)
        self._shuffled = shuffled
        self._kept = self._keep(max_cache_bytes)
        if self.num_batches == 0:
            raise MisconfigurationException(
                "`GeneticPruneCallback` needs validation data for its fitness, but the validation"
                " loader of this fit gives no batches."
            )

    def __call__(self, *, stop_when: StopRule | None = None) -> float:
        """Evaluate the model as it is.

        Args:
            stop_when: ends the evaluation early; the metric is then that of the batches done. Its
                second argument returns NaN for a metric that is logged only at the end, or reduced
                by something else than the mean.

        Returns:
            The metric, possibly NaN.

        Raises:
            MisconfigurationException: if the metric was not logged.
        """
        loop = self._private_loop()
        loop._combined_loader = self._source(stop_when, loop)
        trainer = self._trainer
        with ExitStack() as stack:
            stack.enter_context(muted(trainer))
            stack.enter_context(in_stage(trainer, "validate"))
            stack.enter_context(swapped(trainer.fit_loop.epoch_loop, val_loop=loop))
            if self._kept is not None:  # these batches have been through the hooks already
                stack.enter_context(swapped(self._module, _on_before_batch_transfer=_as_is))
                stack.enter_context(swapped(trainer.strategy, batch_to_device=_as_is))
            try:
                loop.run()
                metrics = dict(trainer._logger_connector.callback_metrics)
            finally:
                loop._results.reset()  # user's torchmetrics objects, after an exception
        if self._monitor not in metrics:
            raise _not_logged(self._monitor, metrics)
        return reduce_mean(trainer, metrics[self._monitor])

    @property
    def num_batches(self) -> float:
        """Batches of a whole evaluation; `inf` if the validation data does not know its length."""
        return len(self._kept) if self._kept is not None else sum(self._max_batches)

    @property
    def random_order(self) -> bool:
        """Whether the first batches of each loader are a random sample of all."""
        user: Any = self._trainer.fit_loop.epoch_loop.val_loop
        return self._shuffled and all(
            isinstance(one, DataLoader) and not isinstance(one.dataset, IterableDataset)
            for one in user._combined_loader.flattened
        )

    def _private_loop(self) -> Any:
        user = self._trainer.fit_loop.epoch_loop.val_loop
        loop = type(user)(
            self._trainer,
            user._trainer_fn,
            user._stage,
            verbose=False,
            inference_mode=user.inference_mode,
        )
        loop._results = SettledResults(training=False)
        loop._max_batches = self._max_batches
        loop._last_val_dl_reload_epoch = math.inf  # never reload
        # A signal handler may write a checkpoint in mid-evaluation.
        vars(loop)["state_dict"] = user.state_dict
        return loop

    def _source(self, stop_when: StopRule | None, loop: Any) -> _Batches:
        def start() -> Iterator[Triple]:
            kept = self._kept
            for done, (batch, *where) in enumerate(self._load() if kept is None else kept):
                if stop_when and done and stop_when(done, lambda: self._running(loop)):
                    return
                yield batch if kept is None else private_copy(batch), *where

        user: Any = self._trainer.fit_loop.epoch_loop.val_loop._combined_loader
        return _Batches(start, self.num_batches, len(self._max_batches), user._mode)

    def _keep(self, max_bytes: int) -> list[Triple] | None:
        """The batches of an evaluation, or None if they are too large."""
        device = self._trainer.strategy.root_device
        if device.type == "cuda":
            max_bytes = min(max_bytes, torch.cuda.mem_get_info(device)[0] // 2)
        step = self._module.validation_step
        raw = "dataloader_iter" in inspect.signature(step).parameters  # moves batches by itself
        kept, size = [], 0
        with muted(self._trainer), in_stage(self._trainer, "validate"):
            for batch, batch_idx, loader_idx in self._load():
                ready = batch if raw else to_device(self._trainer, batch, loader_idx)
                size += tensor_bytes(ready)
                if size > max_bytes:
                    return None
                kept.append((ready, batch_idx, loader_idx))
        return kept

    def _running(self, loop: Any) -> float:
        for result in loop._results.values():
            names = loop._results._forked_name(result, on_step=False)
            if self._monitor in names and result.meta.on_epoch and not result.has_reset:
                return reduce_mean(self._trainer, _value_so_far(result))
        return math.nan


class _Batches:
    """Stands in for the loop's CombinedLoader and gives it our batches."""

    def __init__(
        self, start: Callable[[], Iterator[Triple]], length: float, num_loaders: int, mode: str
    ) -> None:
        self.flattened = [None] * num_loaders
        self.limits: Any = None
        self._mode = mode
        self._start, self._length = start, length
        self._iterator: Iterator[Triple] = iter(())

    def __len__(self) -> int:
        if math.isinf(self._length):
            raise TypeError("the length of the validation data is unknown")
        return int(self._length)

    def __iter__(self) -> _Batches:
        self._iterator = self._start()
        return self

    def __next__(self) -> Triple:
        return next(self._iterator)


def _as_is(batch: Any, dataloader_idx: int = 0) -> Any:
    del dataloader_idx
    return batch


def _value_so_far(result: Any) -> Any:
    """The value of a logged metric in mid-epoch (its own `compute` may reduce in place)."""
    if not result.is_tensor:
        return result.value.compute()
    if result.meta.is_mean_reduction:
        return result.value / result.cumulated_batch_size
    return math.nan


def require_validation(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse a fit in which no validation runs; known as soon as the data are attached.

    Raises:
        MisconfigurationException: saying what is missing.
    """
    if trainer.enable_validation and not trainer.barebones:
        return
    if trainer.limit_val_batches == 0:
        reason = "validation is switched off by `Trainer(limit_val_batches=0)`"
    elif not trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined():
        reason = (
            "there is no validation loader: pass `val_dataloaders` to `fit`, or define"
            " `val_dataloader` in the LightningModule or LightningDataModule"
        )
    elif trainer.enable_validation:
        reason = "`Trainer(barebones=True)` drops all that is logged; leave that out"
    else:
        reason = f"`{type(pl_module).__name__}` has no `validation_step`"
    raise MisconfigurationException(
        f"`GeneticPruneCallback` takes its fitness from the validation of the fit, but {reason}."
    )


def _not_logged(monitor: str, metrics: dict[str, Any]) -> MisconfigurationException:
    logged = ", ".join(repr(name) for name in sorted(metrics)) or "nothing"
    way_out = (
        f"Log it by `self.log({monitor!r}, value, on_epoch=True)` in `validation_step` or in"
        " `on_validation_epoch_end`."
    )
    if similar := difflib.get_close_matches(monitor, metrics, n=1):
        way_out = f"Did you mean {similar[0]!r}? {way_out}"
    return MisconfigurationException(
        f"Expected argument `monitor` to be a metric that validation logs, but got {monitor!r};"
        f" logged was: {logged}. {way_out}"
    )
