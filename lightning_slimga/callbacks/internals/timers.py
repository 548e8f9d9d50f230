"""Timers end a fit between batches; a search, which is long and lies between two, asks them."""

from __future__ import annotations

from typing import Any, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slimga.callbacks.internals.strategy import broadcast


class OutOfTimeError(Exception):
    """A Timer of the fit has run out, in the middle of a search."""


def require_time(trainer: pl.Trainer) -> None:
    """Ask the Timers of the fit, `Trainer(max_time=...)` included, what they would say now.

    Rank 0's clock counts, and `min_epochs` and `min_steps` go before, as in Lightning. The start of
    an epoch is a moment at which Timers of both intervals end a fit.

    Args:
        trainer: the Trainer, inside `fit`; every rank must make the call.

    Raises:
        OutOfTimeError: on all ranks, or on none.
    """
    remaining = [timer.time_remaining() for timer in trainer.callbacks if _is_timer(timer)]  # type: ignore[attr-defined]
    if remaining and trainer.fit_loop._can_stop_early:
        late = any(seconds is not None and seconds <= 0 for seconds in remaining)
        if broadcast(trainer, late):
            raise OutOfTimeError


def end_fit(trainer: pl.Trainer) -> NoReturn:
    """End the fit before the first batch of an epoch, as if that epoch had not begun.

    To be called in `on_train_batch_start`. Lightning itself has no such end: its stop flag counts
    after a batch, by which the network would no longer be the one that is searched, and skipping an
    epoch counts it as done. The hooks of the end are called as ever (`on_train_end`, `on_fit_end`).

    Args:
        trainer: the Trainer; every rank must make the call.

    Raises:
        StopIteration: always; it ends Lightning's loops.
    """
    rank_zero_warn(
        "Time is up in the middle of the search: nothing was pruned. Its state is kept beside the"
        " checkpoints; `fit(ckpt_path=...)` with more time goes on from there."
    )
    loop = vars(trainer.fit_loop)

    def on_advance_end() -> NoReturn:
        del loop["on_advance_end"]
        raise StopIteration

    loop["on_advance_end"] = on_advance_end
    trainer.should_stop = True
    trainer.lightning_module._current_fx_name = None
    raise StopIteration


def _is_timer(callback: Any) -> bool:
    return any(cls.__name__ == "Timer" for cls in type(callback).__mro__) and hasattr(
        callback, "time_remaining"
    )
