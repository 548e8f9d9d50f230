"""What the sparsity callback tells: histograms in those loggers that can, and warnings."""

from __future__ import annotations

import sys

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


def log_histogram(trainer: pl.Trainer, name: str, values: Tensor) -> None:
    """Log `values` as a histogram in every logger of `trainer` that has such a thing.

    Known by what they offer, not by class, so that subclasses and both Lightning packages work:
    `experiment.add_histogram` (TensorBoard) and Weights & Biases. Other loggers are left alone.

    Args:
        trainer: The Trainer with the loggers.
        name: Tag of the histogram.
        values: 1-D tensor.
    """
    if not trainer.is_global_zero or values.numel() == 0:
        return
    data = values.detach().cpu()
    for logger in trainer.loggers:
        experiment = getattr(logger, "experiment", None)
        if experiment is not None and hasattr(experiment, "add_histogram"):
            experiment.add_histogram(name, data, global_step=trainer.global_step)
        elif any(base.__name__ == "WandbLogger" for base in type(logger).__mro__):
            # Whoever has such a logger has imported wandb.
            histogram = sys.modules["wandb"].Histogram(data.numpy())
            logger.log_metrics({name: histogram}, step=trainer.global_step)


def warn_unmoved(
    epoch: int, strength: float, before: float, after: float, advised: float | None
) -> None:
    """Say that a whole epoch of penalty has not moved γ toward zero.

    Args:
        epoch: The epoch.
        strength: λ.
        before: R(γ) at its start.
        after: R(γ) at its end.
        advised: λ that would do; None if that is not known.
    """
    way_out = "Try a larger `strength`."
    if advised is not None and advised > strength:
        way_out = (
            f"Try `strength={advised:g}`, which by learning rate, steps left and γ carries γ of "
            "mean size to zero in time."
        )
    rank_zero_warn(
        f"SparsityCallback: γ has not moved toward zero in epoch {epoch}: the penalty R(γ) went "
        f"from {before:.6g} to {after:.6g}. λ = {strength:g} is too small for this loss, γ is in "
        f"no optimizer, or the learning rate is still rising. {way_out}"
    )


def warn_no_steps(batches: int) -> None:
    """Say that no optimizer step was seen in so many batches."""
    rank_zero_warn(
        f"SparsityCallback saw {batches} training batches but no optimizer step: the penalty never "
        "acted. Under manual optimization step the optimizers of `self.optimizers()`, not the raw "
        "torch ones, or use `proximal=True`."
    )
