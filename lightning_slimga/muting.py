"""Muting: what the masked network returns, without a copy of its weights.

A contraction whose weight is zero for a channel reads that channel as zero, or writes zero into it.
So its other arguments and its result are set to zero there instead: of a large network on a small
example they are the smaller part by far. Small tensors, and weights that something else than a
contraction reads, are zeroed as :func:`~lightning_slimga.shrinking.masked` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_slimga.graph.channel_graph import ChannelGraph
from lightning_slimga.graph.labels import LabelArray, Labels
from lightning_slimga.graph.tensor_map import TensorMap
from lightning_slimga.graph.trace import OpRecord, Trace, tensors_in
from lightning_slimga.pairing import Pairing
from lightning_slimga.shrinking import Mask, zeroed


class Muting(TorchDispatchMode):
    """Run the full network as if it were masked, beside the records of its ops.

    Args:
        records: the ops of the full network.
        graph: the channels.
        trace: the labels; knows the tensors of the network.
        keep: the mask.

    Attributes:
        faithful: whether the pass was that of the masked network: it ran the recorded ops, and
            none that writes into a weight. Look at it after the pass.
    """

    def __init__(
        self, records: Sequence[OpRecord], graph: ChannelGraph, trace: Trace, keep: Mask
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pairing = Pairing(records)
        self._graph = graph
        self._trace = trace
        self._keep = keep
        self._failed = False
        self._raw: TensorMap[bool] = TensorMap()
        self._live: dict[int, npt.NDArray[np.bool_] | None] = {}

    @property
    def faithful(self) -> bool:
        """Whether the pass, which has ended, was that of the masked network."""
        return self._pairing.complete and not self._failed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        record = self._pairing.step(func._schema.name)
        kwargs = kwargs or {}
        tensors = tensors_in(args)
        raw = [self._is_raw(t) for t in tensors]
        if not any(raw):
            return func(*args, **kwargs)
        if record is None or len(tensors) != len(record.inputs) or func._schema.is_mutable:
            self._failed = True
            return func(*args, **kwargs)
        if _is_view(func):
            out = func(*args, **kwargs)
            for tensor in tensors_in(out):
                self._raw[tensor] = True
            return out
        return self._contracted(func, args, kwargs, record, self._left(func, tensors, raw))

    def _left(self, func: Any, tensors: list[Tensor], raw: list[bool]) -> int | None:
        """Position of the weight that may stay as it is, if any."""
        matrices = [i for i, (t, is_raw) in enumerate(zip(tensors, raw, strict=True)) if is_raw]
        matrices = [i for i in matrices if tensors[i].dim() > 1]
        if func.overloadpacket not in flop_registry or len(matrices) != 1:
            return None
        others = sum(t.numel() for i, t in enumerate(tensors) if i != matrices[0])
        return matrices[0] if others < tensors[matrices[0]].numel() else None

    def _contracted(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, record: OpRecord, left: int | None
    ) -> Any:
        """Run an op on what is left of its arguments; one of them may be read as it is."""
        position = -1

        def argument(value: Any) -> Any:
            nonlocal position
            if isinstance(value, (list, tuple)):
                return [argument(item) for item in value]
            if not isinstance(value, Tensor):
                return value
            position += 1
            if position == left or (left is None and not self._is_raw(value)):
                return value
            return self._muted(value, record.inputs[position])

        out = func(*[argument(value) for value in args], **kwargs)
        if left is not None:
            for tensor, labels in zip(tensors_in(out), record.outputs, strict=True):
                self._muted(tensor, labels, own=True)
        return out

    def _is_raw(self, tensor: Tensor) -> bool:
        known = self._raw.get(tensor)
        if known is None:
            slot = self._trace.slot_of(tensor)
            known = self._raw[tensor] = slot is not None and slot.name in self._graph.zeroed
        return known

    def _muted(self, tensor: Tensor, labels: Labels, *, own: bool = False) -> Tensor:
        for dim, array in enumerate(labels):
            live = None if array is None else self._live_in(array)
            if live is not None:
                tensor, own = zeroed(tensor, dim, live, inplace=own), True
        return tensor

    def _live_in(self, labels: LabelArray) -> npt.NDArray[np.bool_] | None:
        """Which indices stay; None where all do."""
        if id(labels) not in self._live:
            bits = self._graph.bits_of(labels)
            live = (bits < 0) | self._keep[bits]
            self._live[id(labels)] = None if live.all() else live
        return self._live[id(labels)]


@cache
def _is_view(func: Any) -> bool:
    infos = [argument.alias_info for argument in func._schema.arguments]
    return any(info is not None and not info.is_write for info in infos)
