"""Muting: what the masked network returns, without a copy of its weights.

A contraction whose weight is zero for a channel reads that channel as zero, or writes zero into it.
So what lives is contracted alone, with the small weight that the shrunk network has; where that is
not to be had, the other arguments and the result are set to zero instead of a large weight.
Everything else that reads a parameter reads it zeroed, as
:func:`~lightning_slimga.surgery.masking.masked` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_slimga.graph.labels import LabelArray, Labels
from lightning_slimga.graph.layers import Bits, ChannelGraph
from lightning_slimga.graph.registry import pools
from lightning_slimga.graph.signature import Signature
from lightning_slimga.graph.tensor_map import TensorMap
from lightning_slimga.graph.trace import OpRecord, Trace, tensors_in
from lightning_slimga.surgery.masking import Mask, indices_of, zeroed
from lightning_slimga.surgery.proof.apart import pointwise_apart, pooled_apart
from lightning_slimga.surgery.proof.pairing import Pairing
from lightning_slimga.surgery.proof.regrouping import Lives, regrouped
from lightning_slimga.surgery.proof.sharing import Sharing
from lightning_slimga.surgery.proof.survivors import Survivors
from lightning_slimga.surgery.tensor_cut import TensorCut

_LIGHT = 2**17  # numbers of a tensor that is not worth to be copied, only to have it the same


class Muting(TorchDispatchMode):
    """Run the full network as if it were masked, beside the records of its ops.

    Args:
        records: the ops of the full network.
        graph: the channels.
        trace: the labels; knows the tensors of the network.
        keep: the mask.
        survivors: what it leaves.
        pieces: what the mask leaves of the network's tensors, and how it was cut, by name.
        sharing: contractions that the shrunk network has computed, or will.
    """

    def __init__(
        self,
        records: Sequence[OpRecord],
        graph: ChannelGraph,
        trace: Trace,
        keep: Mask,
        survivors: Survivors,
        pieces: Mapping[str, tuple[Tensor, TensorCut]],
        sharing: Sharing,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pairing = Pairing(records)
        self._graph = graph
        self._trace = trace
        self._gone: Mask = np.append(~keep, False)  # at its end: what has no bit
        self._failed = False
        self._survivors = survivors
        self._pieces = pieces
        self._sharing = sharing
        self._raw: TensorMap[bool] = TensorMap()
        # what the shrunk network has in its place, and what that keeps
        self._small: TensorMap[tuple[Tensor, Mapping[int, Tensor]]] = TensorMap()
        self._bits: dict[int, Bits] = {}

    @property
    def faithful(self) -> bool:
        """Whether the pass, which has ended, was that of the masked network.

        It ran the recorded ops, and none that writes into a parameter.
        """
        return self._pairing.complete and not self._failed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        record, kwargs = self._pairing.step(func._schema.name), kwargs or {}
        tensors = tensors_in(args)
        raw = [self._is_raw(t) for t in tensors]
        if not any(raw):
            out = self._apart(func, args, kwargs, record)
            return func(*args, **kwargs) if out is None else out
        if record is None or len(tensors) != len(record.inputs) or func._schema.is_mutable:
            self._failed = True
            return func(*args, **kwargs)
        if Signature.of(func).views:
            return self._viewed(func, args, kwargs)
        if func.overloadpacket in flop_registry:
            out = self._contracted(func, args, kwargs, record, raw)
            if out is not None:
                return out
        zeros = [
            self._lives(labels) if r else {} for labels, r in zip(record.inputs, raw, strict=True)
        ]
        return func(*_each(args, lambda i, t: _muted(t, zeros[i])), **kwargs)

    def _is_raw(self, tensor: Tensor) -> bool:
        """Whether it is a parameter that masking would zero, or a view of one."""
        known = self._raw.get(tensor)
        if known is None:
            slot = self._trace.slot_of(tensor)
            known = self._raw[tensor] = slot is not None and slot.name in self._graph.zeroed
            if slot is not None and slot.name in self._pieces:
                piece, cut = self._pieces[slot.name]
                self._small[tensor] = piece, cut.kept
        return known

    def _viewed(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """A view of a parameter; if it reorders dimensions, the same view of what is left of it."""
        out = func(*args, **kwargs)
        for tensor in tensors_in(out):
            self._raw[tensor] = True
        whole = tensors_in(args)
        known = self._small.get(whole[0]) if len(whole) == 1 else None
        order = _order(whole[0], out) if known is not None and isinstance(out, Tensor) else None
        if known is not None and order is not None:
            small, kept = known
            with suppress(RuntimeError):  # sizes in its arguments
                view = func(*_each(args, lambda _, t: small), **kwargs)
                self._small[out] = view, {order.index(d): indices for d, indices in kept.items()}
        return out

    def _apart(self, func: Any, args: tuple[Any, ...], kwargs: Any, record: OpRecord | None) -> Any:
        """What lives goes through some ops as in the shrunk network; None where it need not."""
        pooling = pools(func._schema.name)
        if not pooling and torch.Tag.pointwise not in func.tags:
            return None
        if record is None or kwargs or len(record.inputs) != 1 or not isinstance(args[0], Tensor):
            return None
        lives = self._lives(record.inputs[0])
        if len(lives) != 1:
            return None
        ((dim, live),) = lives.items()
        if pooling:
            run = partial(self._sharing.run, record.place, kwargs={})
            return pooled_apart(run, func, args, dim, live)
        light = args[0].is_floating_point() and args[0].numel() < _LIGHT
        return pointwise_apart(func, args, dim, live) if light else None

    def _contracted(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, record: OpRecord, raw: list[bool]
    ) -> Any:
        """The result of a contraction, without zeroing its weight; None where that is not easy."""
        tensors = tensors_in(args)
        matrices = [i for i, t in enumerate(tensors) if raw[i] and t.dim() > 1]
        if len(matrices) != 1 or len(record.outputs) != 1:
            return None
        weight = matrices[0]
        gone = self._gone_from(record.inputs[weight])
        lives = [self._lives_of(labels, gone) for labels in record.inputs]
        result = self._lives_of(record.outputs[0], gone)
        if not lives[weight]:
            return None
        light = 2 * tensors[weight].numel() < sum(t.numel() for t in tensors)
        if light or self._small.get(tensors[weight]) is not None:
            out = self._alive(func, args, kwargs, record, lives, result)
            if light or out is not None:
                return out
        lives[weight] = {}
        out = func(*_each(args, lambda i, t: _muted(t, lives[i])), **kwargs)
        return _muted(out, result, own=True)

    def _alive(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Any,
        record: OpRecord,
        lives: list[Lives],
        result: Lives,
    ) -> Any:
        """Contract what lives alone, and put it where it belongs; None where that is not easy.

        It is where a channel that goes has the same place in two of the tensors, or whole groups go
        from all of them, and where the op takes the smaller sizes.
        """
        taking = regrouped(func, args, [*lives, result])
        if len(result) > 1 or taking is None:
            return None
        taken = tuple(_each(taking, lambda i, t: self._taken(t, lives[i])))
        try:
            out = self._sharing.run(record.place, func, taken, kwargs)
        except RuntimeError:
            return None
        for dim, live in result.items():
            if out.shape[dim] != live.sum():
                return None
            index = indices_of(live, out.device)
            out = out.new_zeros(record.shapes[0]).index_copy_(dim, index, out)
        return out if tuple(out.shape) == record.shapes[0] else None

    def _taken(self, tensor: Tensor, lives: Lives) -> Tensor:
        """What lives of a tensor: for a weight, the shrunk network's own."""
        small, kept = self._small.get(tensor) or (None, {})
        return small if small is not None and _keeps(kept, lives) else _taken(tensor, lives)

    def _gone_from(self, labels: Labels) -> Mask:
        """What goes, of the channels in some dimensions only, by bit."""
        gone = np.zeros_like(self._gone)
        for dim in labels:
            if dim is not None and self._survivors.removed(dim):
                bits = self._bits_of(dim)
                gone[bits] = self._gone[bits]
        return gone

    def _lives(self, labels: Labels) -> Lives:
        """What lives of a tensor."""
        lives = ((d, self._survivors.live(dim)) for d, dim in enumerate(labels) if dim is not None)
        return {d: live for d, live in lives if live is not None}

    def _lives_of(self, labels: Labels, gone: Mask) -> Lives:
        """What would live of a tensor if no others went."""
        some = ((d, dim) for d, dim in enumerate(labels) if dim is not None)
        lives = ((d, ~gone[self._bits_of(dim)]) for d, dim in some if self._survivors.removed(dim))
        return {d: live for d, live in lives if not live.all()}

    def _bits_of(self, labels: LabelArray) -> Bits:
        if id(labels) not in self._bits:
            self._bits[id(labels)] = self._graph.bits_of(labels)
        return self._bits[id(labels)]


def _each(args: Sequence[Any], change: Callable[[int, Tensor], Tensor]) -> list[Any]:
    """Arguments with every tensor changed, given its number among them."""
    numbers = count()

    def changed(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [changed(item) for item in value]
        return change(next(numbers), value) if isinstance(value, Tensor) else value

    return [changed(value) for value in args]


def _muted(tensor: Tensor, lives: Lives, *, own: bool = False) -> Tensor:
    for dim, live in lives.items():
        tensor, own = zeroed(tensor, dim, live, inplace=own), True
    return tensor


def _taken(tensor: Tensor, lives: Lives) -> Tensor:
    for dim, live in lives.items():
        tensor = tensor.index_select(dim, indices_of(live, tensor.device))
    return tensor


def _order(whole: Tensor, view: Tensor) -> list[int] | None:
    """Which dimension of a tensor each dimension of a view of it is; None where it shows others."""
    places = list(zip(whole.stride(), whole.shape, strict=True))
    found = list(zip(view.stride(), view.shape, strict=True))
    distinct = len(set(places)) == len(places)
    if whole.data_ptr() != view.data_ptr() or not distinct or sorted(found) != sorted(places):
        return None
    return [places.index(place) for place in found]


def _keeps(kept: Mapping[int, Tensor], lives: Lives) -> bool:
    """Whether these indices are what lives."""
    return kept.keys() == lives.keys() and all(
        len(kept[dim]) == np.count_nonzero(live) and live[kept[dim].numpy()].all()
        for dim, live in lives.items()
    )
