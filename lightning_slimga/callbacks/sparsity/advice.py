"""A λ to try, where the one that was given has not moved γ."""

from __future__ import annotations

import math

import lightning.pytorch as pl

from lightning_slimga.callbacks.sparsity.pull import Pull
from lightning_slimga.callbacks.sparsity.strength import prune_epochs

_STEEPEST = 0.9  # part of Adam's largest step that the penalty may ask for


def advised_strength(
    trainer: pl.Trainer,
    pull: Pull,
    strength: float,
    *,
    before: float,
    steps: int,
    proximal: bool,
) -> float | None:
    """Return the λ that carries γ of mean size to zero in the steps that are left.

    In a step γ moves by `gain · λ · slope` toward zero, with `gain` the learning rate over 1 minus
    the momentum (of Adam: over the size of the gradients, by which it divides). What the loss has
    moved it in the other direction is known from the epoch that is over. Both are overcome.

    Args:
        trainer: the Trainer, at the end of an epoch.
        pull: what pulls at which γ.
        strength: λ of that epoch.
        before: mean size of γ when it began.
        steps: optimizer steps that it had.
        proximal: whether γ follows the penalty in proximal steps.

    Returns:
        λ > 0, two digits; None where it cannot be told: no steps are left, or nothing moves γ.
    """
    size = pull.mean_size()
    rate = pull.reach(trainer.optimizers, proximal=proximal)
    plain = pull.reach(trainer.optimizers, proximal=True)
    divisor = None if proximal else pull.gradient_size(trainer.optimizers)
    gain, slope, left = rate / (divisor or 1.0), pull.slope(size), _steps_left(trainer)
    if not (gain > 0 and slope > 0 and left > 0 and steps > 0):
        return None
    built_up = _built_up(1 - plain / pull.reach(trainer.optimizers, proximal=False), steps)
    loss = (size - before) / (steps * built_up) + gain * strength * slope  # away from zero
    needed = max(loss, 0.0) + size / left
    if divisor is not None:  # the steeper the penalty, the more Adam divides by
        part = min(needed / rate, _STEEPEST)
        needed = part * rate / math.sqrt(1 - part**2)
    return float(f"{needed / (gain * slope):.2g}")


def _built_up(momentum: float, steps: int) -> float:
    """Part of a steady step that the first so many steps have on average."""
    return 1 - momentum * (1 - momentum**steps) / (steps * (1 - momentum))


def _steps_left(trainer: pl.Trainer) -> float:
    """Optimizer steps until the next pruning, or until the end of the fit."""
    done = trainer.current_epoch + 1
    later = [epoch for epoch in prune_epochs(trainer) if epoch > done]
    epochs = min(later, default=trainer.max_epochs or -1) - done
    batches = trainer.num_training_batches / trainer.accumulate_grad_batches
    if epochs >= 0 and math.isfinite(batches):
        return epochs * batches
    return trainer.max_steps - trainer.global_step if trainer.max_steps > 0 else 0
