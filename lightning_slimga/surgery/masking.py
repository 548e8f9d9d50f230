"""One mask, three uses: zero its channels, cut them for a while, or plan to cut them for good."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.graph.tensors import Slot, modules_of, tensor_at
from lightning_slimga.surgery.plan import PruningPlan
from lightning_slimga.surgery.tensor_cut import TensorCut
from lightning_slimga.surgery.transaction import Transaction

_INTEGERS = {
    torch.float64: (np.int64, torch.int64),
    torch.float32: (np.int32, torch.int32),
    torch.float16: (np.int16, torch.int16),
    torch.bfloat16: (np.int16, torch.int16),
}

Mask = npt.NDArray[np.bool_]
"""One bit per removable channel, shape (num_channels,); True = keep."""


def plan_cut(graph: ChannelGraph, slots: dict[str, Slot], keep: Mask) -> PruningPlan:
    """The plan that removes the channels that ``keep`` leaves out (without a summary)."""
    kept: dict[str, dict[int, torch.Tensor]] = {}
    gone = np.append(~keep, False)  # at its end: what has no bit
    for (name, dim), bits in graph.bits.items():
        removed = gone[bits]
        if removed.any():
            kept.setdefault(name, {})[dim] = torch.from_numpy(np.flatnonzero(~removed))
    tensors = {
        name: TensorCut(slots[name].places, slots[name].shape, dims) for name, dims in kept.items()
    }
    attributes = []
    for attribute, bits in graph.attributes:
        size = len(bits) - int(np.count_nonzero(gone[bits]))
        if size != len(bits):
            attributes.append((attribute.module, attribute.attribute, len(bits), size))
    return PruningPlan(tensors, tuple(attributes))


def check_full_size(model: nn.Module, graph: ChannelGraph, slots: dict[str, Slot]) -> None:
    """Refuse a model that is no longer of the size at which it was analysed.

    Of every tensor that any mask cuts: a mask that cuts nothing of it would not notice.

    Raises:
        ValueError: naming the first tensor that has another shape.
    """
    modules = modules_of(model)
    for name in dict.fromkeys(name for name, _ in graph.bits):
        tensor = tensor_at(modules, slots[name].places[0])
        wanted = slots[name].shape
        if tensor is None or tuple(tensor.shape) != wanted:
            found = "no such tensor" if tensor is None else tuple(tensor.shape)
            smaller = tensor is not None and tensor.numel() < math.prod(wanted)
            hint = " The plan has been applied to it already." if smaller else ""
            raise ValueError(
                f"Expected argument `model` to have a tensor {name!r} of shape {wanted}, as"
                f" when it was analysed, but got {found}.{hint} Analyse it anew for another cut."
            )


@contextmanager
def masked(
    model: nn.Module, graph: ChannelGraph, slots: dict[str, Slot], keep: Mask
) -> Iterator[None]:
    """Zero every slice of a removed channel, where it is written and where it is read.

    A channel whose value is not zero although its weights are (``sigmoid(0)``) is read through
    zeros, so the network computes what the shrunk one computes. The tensors stay the same objects,
    with another storage meanwhile: nothing is copied back.
    """
    saved: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    modules = modules_of(model)
    try:
        for (name, dim), bits in graph.bits.items():
            live = _live(bits, keep)
            if (name, dim) in graph.zeroed and not live.all():
                tensor = tensor_at(modules, slots[name].places[0])
                assert tensor is not None
                own = name in saved
                saved.setdefault(name, (tensor, tensor.data))
                tensor.data = zeroed(tensor.data, dim, live, inplace=own)
        yield
    finally:
        for tensor, data in saved.values():
            tensor.data = data


@contextmanager
def swapped_in(plan: PruningPlan, model: nn.Module) -> Iterator[None]:
    """Cut ``model`` for the duration of the block; the same tensor objects come back.

    Meanwhile small parameters have no gradients, which nobody asks for.

    Args:
        plan: what is kept.
        model: the full-size model.
    """
    with Transaction() as transaction:
        plan.cut(model, transaction, for_good=False)
        try:
            yield
        finally:
            transaction.roll_back()


def zeroed(
    data: torch.Tensor, dim: int, live: npt.NDArray[np.bool_], *, inplace: bool
) -> torch.Tensor:
    """A tensor with zeros in the slices that do not live, whatever was in them.

    On the bits of the numbers, because NaN times zero is no zero, and a fill by index is slow.

    Args:
        data: any tensor.
        dim: the dimension of the slices.
        live: which of them live, shape (size of the dimension,).
        inplace: write into ``data``.
    """
    kind = _INTEGERS.get(data.dtype)
    if kind is None:
        gone = indices_of(~live, data.device)
        return data.index_fill_(dim, gone, 0) if inplace else data.index_fill(dim, gone, 0)
    # all bits or none, by index; a view of numpy's is quicker than torch's
    ones = torch.from_numpy(-live.astype(kind[0])).to(data.device)
    ones = ones.view([-1] + [1] * (data.dim() - 1 - dim))
    bits = data.view(kind[1])
    return (bits.bitwise_and_(ones) if inplace else bits.bitwise_and(ones)).view(data.dtype)


def indices_of(which: Mask, device: torch.device) -> torch.Tensor:
    """The indices at which a mask of one dimension is True, on a device."""
    return torch.from_numpy(np.flatnonzero(which)).to(device)


def _live(bits: npt.NDArray[np.int64], keep: Mask) -> npt.NDArray[np.bool_]:
    return (bits < 0) | keep[bits]
