"""Callbacks that an environment variable asks for, without a change to the training script."""

from __future__ import annotations

import json
import os
from typing import Any

import lightning.pytorch as pl

from lightning_slimga.callbacks.prune.callback import GeneticPruneCallback
from lightning_slimga.callbacks.sparsity.callback import SparsityCallback

VARIABLE = "LIGHTNING_SLIMGA"
"""JSON such as {"sparsity": {"strength": 0.001}, "prune": {"monitor": "val_acc", ...}}."""

_CLASSES: dict[str, type[pl.Callback]] = {
    "sparsity": SparsityCallback,
    "prune": GeneticPruneCallback,
}


def callbacks_from_environment() -> list[pl.Callback]:
    """Make the callbacks that `LIGHTNING_SLIMGA` names, with the arguments given there.

    Lightning's entry point for callbacks of other packages: every Trainer calls it and adds what
    it returns. Because pruning changes networks, that is nothing unless the variable is set.

    Raises:
        ValueError: when the variable does not hold such JSON, or a callback refuses an argument.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return []
    try:
        wanted = json.loads(text)
        if not isinstance(wanted, dict) or not wanted.keys() <= _CLASSES.keys():
            raise TypeError(f"the keys are {', '.join(map(repr, _CLASSES))}")
        made: list[pl.Callback] = [_CLASSES[name](**_given(wanted[name])) for name in wanted]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected environment variable {VARIABLE} to be JSON like"
            ' {"sparsity": {"strength": 0.001}}, with the arguments of the callbacks, but got'
            f" {text!r}: {error}"
        ) from error
    return made


def _given(arguments: Any) -> dict[str, Any]:
    if not isinstance(arguments, dict):
        raise TypeError(f"arguments must be an object, not {arguments!r}")
    return arguments
