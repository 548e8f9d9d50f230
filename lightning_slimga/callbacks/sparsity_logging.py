"""Showing the distribution of γ in those loggers that can."""

from __future__ import annotations

import sys

import lightning.pytorch as pl
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
