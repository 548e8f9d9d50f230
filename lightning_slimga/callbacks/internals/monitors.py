"""Who remembers the network as it was: best scores, patience, averaged copies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def reset_monitors(trainer: pl.Trainer) -> list[str]:
    """Let "best" and patience start anew, as the scores of another network are no measure.

    Concerns every callback of the kinds of `ModelCheckpoint` and `EarlyStopping` (of either
    Lightning package), and every reduce-on-plateau schedule. Files on disk stay.

    Args:
        trainer: the Trainer, right after surgery.

    Returns:
        Paths of the files that had been the best so far.
    """
    former = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "best_k_models"):
            if callback.best_model_path:
                former.append(str(callback.best_model_path))
            _reset_checkpoint(callback)
        elif hasattr(callback, "wait_count") and hasattr(callback, "monitor_op"):
            _reset_early_stopping(callback)
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and hasattr(config.scheduler, "_reset"):
            config.scheduler._reset()
    return former


def _reset_checkpoint(callback: Any) -> None:
    callback.best_k_models = {}
    callback.best_model_path = callback.kth_best_model_path = ""
    callback.best_model_score = callback.current_score = None
    callback.kth_value = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
    if hasattr(callback, "_last_global_step_saved"):
        # The weights have changed although the step has not: the next save must not be skipped.
        callback._last_global_step_saved = -1


def _reset_early_stopping(callback: Any) -> None:
    callback.wait_count = 0
    worst = math.inf if callback.monitor_op is torch.lt else -math.inf
    callback.best_score = torch.tensor(worst)


def averaged_models(trainer: pl.Trainer) -> list[nn.Module]:
    """Copies of the LightningModule that callbacks keep and that must be cut along with it.

    Such are the averages of `WeightAveraging`, `EMAWeightAveraging` and
    `StochasticWeightAveraging`; other callbacks are recognised by what they hold, an
    `AveragedModel` or a second module of the LightningModule's class.

    Args:
        trainer: the Trainer of the fit.

    Returns:
        Modules with the parameter names of the LightningModule, each once.
    """
    found: dict[int, nn.Module] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for module in _held_copies(callback, trainer.lightning_module):
            found[id(module)] = module
    return list(found.values())


def _held_copies(callback: Any, original: pl.LightningModule) -> Iterator[nn.Module]:
    for value in vars(callback).values():
        copied = value.module if isinstance(value, AveragedModel) else value
        if type(copied) is type(original) and copied is not original:
            yield copied
