"""See a checkpoint before the module's weights are loaded from it, and after it has been filled.

`Callback.on_load_checkpoint` comes after the weights, too late to change shapes, and
`Callback.on_save_checkpoint` is left out with `save_weights_only`. The LightningModule's own two
hooks come at the right moments, so ours go in front of (load) and behind (save) them.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl

CheckpointFunction = Callable[[pl.LightningModule, dict[str, Any]], None]


def install_checkpoint_hooks(
    pl_module: pl.LightningModule, *, on_load: CheckpointFunction, on_save: CheckpointFunction
) -> None:
    """Let functions take part when the Trainer loads or saves a checkpoint of the module.

    To be called in `Callback.setup` of every stage; replaces what an earlier call has installed.

    Args:
        pl_module: the LightningModule of the Trainer.
        on_load: called with the module and the checkpoint, before the module's own
            `on_load_checkpoint` and before any weight is loaded.
        on_save: called with the module and the checkpoint, after the module's own
            `on_save_checkpoint`, also for checkpoints with weights only.
    """
    remove_checkpoint_hooks(pl_module)
    for name, function in (("on_load_checkpoint", on_load), ("on_save_checkpoint", on_save)):
        setattr(pl_module, name, _Hook(pl_module, name, function))


def remove_checkpoint_hooks(pl_module: pl.LightningModule) -> None:
    """Undo `install_checkpoint_hooks`; to be called in `Callback.teardown`.

    Args:
        pl_module: a LightningModule, with or without such hooks.
    """
    for name in ("on_load_checkpoint", "on_save_checkpoint"):
        hook = vars(pl_module).get(name)
        if isinstance(hook, _Hook):
            delattr(pl_module, name)
            if hook.former is not None:
                setattr(pl_module, name, hook.former)


class _Hook:
    """The module's hook with ours beside it.

    Copies of the module (averaged models are such) carry the module's own hook alone: ours belongs
    to a callback, which must not be copied or pickled along.
    """

    def __init__(
        self, pl_module: pl.LightningModule, name: str, function: CheckpointFunction | None
    ) -> None:
        self.pl_module, self.name, self.function = pl_module, name, function
        self.former = vars(pl_module).get(name)

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        own = self.former or getattr(type(self.pl_module), self.name).__get__(self.pl_module)
        if self.name == "on_load_checkpoint" and self.function is not None:
            self.function(self.pl_module, checkpoint)
        own(checkpoint)
        if self.name == "on_save_checkpoint" and self.function is not None:
            self.function(self.pl_module, checkpoint)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "function": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        copied = object.__new__(_Hook)
        memo[id(self)] = copied
        vars(copied).update(deepcopy(self.__getstate__(), memo))
        return copied


def own_state(pl_module: pl.LightningModule) -> dict[str, Any]:
    """``state_dict`` whose buffers are copies: recalibration writes into buffers."""
    buffers = {name for name, _ in pl_module.named_buffers()}
    return {
        name: value.clone() if name in buffers else value
        for name, value in pl_module.state_dict().items()
    }
