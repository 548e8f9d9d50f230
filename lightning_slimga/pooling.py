"""Pooling of a masked network: what lives is pooled as the shrunk network does, the rest at once.

A channel that goes is the same number everywhere: its weights are zero. Pooling takes every
channel by itself, and makes of a constant that constant times what it makes of ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_slimga.shrinking import Mask


def pooled_apart(run: Callable[..., Any], func: Any, args: Any, dim: int, live: Mask) -> Any:
    """The result of a pooling, with what lives pooled alone.

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
    stays, goes = (
        torch.from_numpy(np.flatnonzero(which)).to(whole.device) for which in (live, ~live)
    )
    dead = whole.index_select(dim, goes)
    corner = (..., *[slice(1)] * (whole.dim() - dim - 1))
    constant = dead[corner]
    if not (dead == constant).all():
        return None
    of_ones = func(torch.ones_like(dead.narrow(dim, 0, 1)), *others)
    of_living = run(func, (whole.index_select(dim, stays), *others))

    def joined(small: Tensor, one: Tensor) -> Tensor:
        shape = [*small.shape[:dim], whole.shape[dim], *small.shape[dim + 1 :]]
        rest = constant * one if one.is_floating_point() else one.expand_as(constant * one)
        return small.new_empty(shape).index_copy_(dim, stays, small).index_copy_(dim, goes, rest)

    return tree_map(joined, of_living, of_ones)
