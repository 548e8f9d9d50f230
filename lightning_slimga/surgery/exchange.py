"""Give a tensor object a smaller content: whoever holds the object holds the small tensor then.

A program keeps references to parameters in lists, caches, optimizers and hooks. They stay good
where the object stays the same, so contents are exchanged (``torch.utils.swap_tensors``). Torch
refuses that while something else counts on the old content (DDP's reducer, a weak reference of
compiled code); there the object is replaced.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_slimga.surgery.transaction import Transaction


def parameter_like(old: nn.Parameter, content: Tensor) -> nn.Parameter:
    """A parameter of that content, with the Python attributes and the hooks of another one."""
    parameter = nn.Parameter(content, requires_grad=old.requires_grad)
    parameter.__dict__.update(old.__dict__)
    _set_hooks(parameter, *_hooks(old))
    return parameter


def exchanged(old: Tensor, new: Tensor, transaction: Transaction) -> bool:
    """Exchange the contents of two tensors, gradients and hooks included.

    Args:
        old: the tensor that others hold; it has the content of ``new`` afterwards.
        new: has the content of ``old`` afterwards.
        transaction: exchanges them back when it is undone.

    Returns:
        Whether torch allows it; if not, nothing was changed.
    """
    try:
        _exchange(old, new)
    except RuntimeError:  # somebody else holds the content
        return False
    transaction.on_roll_back(partial(_exchange, old, new))
    return True


def _exchange(a: Tensor, b: Tensor) -> None:
    hooks = _hooks(a)
    torch.utils.swap_tensors(a, b)  # type: ignore[no-untyped-call]
    _set_hooks(a, *hooks)  # torch leaves them with the content


def _hooks(tensor: Tensor) -> tuple[Any, Any]:
    return tensor._backward_hooks, tensor._post_accumulate_grad_hooks


def _set_hooks(tensor: Tensor, before: Any, after: Any) -> None:
    """The same dictionaries: what ``register_hook`` has returned can still remove its hook."""
    if before:
        tensor._backward_hooks = before
    if after:
        tensor._post_accumulate_grad_hooks = after
