"""When a share of γ is to be reached, and how far a fit is on its way there."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException


def refuse_beyond(epoch: int | None, trainer: pl.Trainer) -> None:
    """Raise if a fit ends before that epoch is complete.

    Raises:
        MisconfigurationException: If it does.
    """
    last = trainer.max_epochs
    tried = getattr(trainer, "fast_dev_run", False)  # a try of one epoch reaches no goal
    if epoch is not None and last is not None and 0 <= last < epoch and not tried:
        raise MisconfigurationException(
            f"Expected argument `target_epoch` to be at most `max_epochs`, {last}, "
            f"but got {epoch}: the share would never be reached. Lower `target_epoch`, leave it at "
            "None (the next pruning, or the end of the fit), or raise `max_epochs`."
        )


def epochs_done(trainer: pl.Trainer, batch_idx: int) -> float:
    """Return how many epochs lie behind this batch; an epoch of unknown length counts at once."""
    batches = trainer.num_training_batches
    return trainer.current_epoch + (1.0 if math.isinf(batches) else batch_idx / batches)


def prune_epochs(trainer: pl.Trainer) -> list[int]:
    """Return the epochs, rising, before which callbacks of a Trainer remove channels.

    Known by what they offer, not by class, so that any callback that prunes can be followed.
    """
    epochs: list[Any] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        epochs += [getattr(callback, "prune_epoch", None)]
        epochs += list(getattr(callback, "prune_epochs", None) or [])
    return sorted({epoch for epoch in epochs if isinstance(epoch, int)})
