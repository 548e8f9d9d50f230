"""Which models surgery can work on at all; the others are refused in one sentence."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

# By name: some builds of torch come without the modules that define them.
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel"}


def check_kinds(model: Any) -> None:
    """Refuse what is no plain module, and has none but plain modules, used or not.

    Args:
        model: what a user gives; it need not have run yet.

    Raises:
        TypeError: when it is no ``nn.Module``, or holds one of a kind whose sizes are fixed
            elsewhere.
    """
    if not isinstance(model, nn.Module):
        _refuse(f"a {type(model).__name__}", "Pass the network itself.")
    for name, module in model.named_modules():
        where = f"at {name!r} " if name else ""
        for wrapper in _WRAPPERS.intersection(kind.__name__ for kind in type(module).__mro__):
            _refuse(f"{where}a {wrapper}", "Pass what it wraps, and wrap the result anew.")
        if isinstance(module, torch.jit.ScriptModule):
            _refuse(f"{where}TorchScript, which cannot be cut", "Pass what it was made of.")
        if isinstance(module, torch.fx.GraphModule) and "train" in vars(module):
            what = "the result of torch.export, whose graph holds the sizes"
            _refuse(f"{where}{what}", "Pass what was exported, and export the result anew.")


def check_model(model: Any) -> None:
    """Refuse a model whose tensors cannot be replaced, or which cannot be run as it is.

    Compiled modules are fine: the code that was compiled is made anew for the new sizes.

    Args:
        model: what a user gives.

    Raises:
        TypeError: when it is no ``nn.Module``, or one of a kind whose sizes are fixed elsewhere.
        ValueError: when some of its parameters have no size or no value yet.
    """
    check_kinds(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(
                f"Expected argument `model` to have run once, but {name!r} has no size yet (a lazy"
                " module). Call it on an example first."
            )
        if tensor.is_meta:
            raise ValueError(
                f"Expected argument `model` to hold values, but {name!r} is on the meta device."
                " Load its weights first."
            )


def _refuse(what: str, way_out: str) -> None:
    raise TypeError(
        f"Expected argument `model` to be a plain nn.Module (compiled or not), but got {what}."
        f" {way_out}"
    )
