"""Ops of the masked network in two parts: what lives, as the shrunk network has it, and the rest.

Then both networks have the very same numbers to contract, and what is dear is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_slimga.surgery.masking import Mask, indices_of


def pooled_apart(run: Callable[..., Any], func: Any, args: Any, dim: int, live: Mask) -> Any:
    """The result of a pooling, with what lives pooled alone.

    A channel that goes is the same number everywhere: its weights are zero. Pooling takes every
    channel by itself, and makes of a constant that constant times what it makes of ones.

    Args:
        run: runs an op on what lives; may know the result.
        func: the ATen overload of the pooling.
        args: its arguments; the first one alone is a tensor.
        dim: the dimension of the channels.
        live: which of them live, shape (size of the dimension,).

    Returns:
        What ``func(*args)`` returns; None where a channel that goes is not constant.
    """
    whole, *others = args
    stays, goes = (indices_of(which, whole.device) for which in (live, ~live))
    dead = whole.index_select(dim, goes)
    planes = dead.reshape(*dead.shape[: dim + 1], -1)
    constant = planes.amax(-1)  # two quick passes; a comparison is a slow one
    if not torch.equal(constant, planes.amin(-1)):
        return None
    constant = constant.view(*constant.shape, *[1] * (whole.dim() - constant.dim()))
    of_ones = func(torch.ones_like(dead.narrow(dim, 0, 1)), *others)
    of_living = run(func, (whole.index_select(dim, stays), *others))

    def joined(small: Tensor, one: Tensor) -> Tensor:
        shape = [*small.shape[:dim], whole.shape[dim], *small.shape[dim + 1 :]]
        rest = constant * one if one.is_floating_point() else one.expand_as(constant * one)
        return small.new_empty(shape).index_copy_(dim, stays, small).index_copy_(dim, goes, rest)

    return tree_map(joined, of_living, of_ones)


def pointwise_apart(func: Any, args: Any, dim: int, live: Mask) -> Any:
    """The result of an op that takes each number by itself, with what lives taken alone.

    A processor may round the last numbers of a tensor otherwise than the others: those that are too
    few for its vector instructions. So they are here the ones that are the last in the shrunk
    network, too.

    Args:
        func: the ATen overload; it may write into its argument.
        args: its arguments; the first one alone is a tensor.
        dim: the dimension of the channels.
        live: which of them live, shape (size of the dimension,).

    Returns:
        What ``func(*args)`` returns.
    """
    whole, *others = args
    out = whole if func._schema.is_mutable else None
    for which in (live, ~live):
        index = indices_of(which, whole.device)
        part = func(whole.index_select(dim, index), *others)
        out = part.new_empty(whole.shape) if out is None else out
        out.index_copy_(dim, index, part)
    return out
