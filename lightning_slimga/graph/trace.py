"""What watching a network has taught: labels of its tensors, costs, and every op that ran."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_slimga.graph.labels import DimLabels, LabelArray, Labels, LabelStore
from lightning_slimga.graph.tensors import Slot


@dataclass(frozen=True)
class CostTerm:
    """MACs of one op: ``constant`` times the live size of each labelled dimension.

    Attributes:
        module: name of the module whose forward ran the op.
        constant: product of the sizes that no mask changes.
        factors: labels of the dimensions that shrink.
    """

    module: str
    constant: int
    factors: tuple[LabelArray, ...]


@dataclass(frozen=True)
class SizeAttribute:
    """A number that a module keeps about a dimension, such as ``out_channels`` or ``groups``.

    Attributes:
        module: name of the module.
        attribute: its attribute; ``normalized_shape.-1`` is an entry of a tuple.
        labels: one label per unit of the number.
    """

    module: str
    attribute: str
    labels: LabelArray


@dataclass
class Trace:
    """Everything that watching forward passes has taught; shared by all passes of an analysis."""

    store: LabelStore
    slots: dict[str, Slot]
    modules: dict[str, nn.Module]
    slot_labels: dict[str, Labels] = field(default_factory=dict)
    attributes: dict[tuple[str, str], SizeAttribute] = field(default_factory=dict)
    scaling_factors: set[str] = field(default_factory=set)
    contracted_buffers: set[str] = field(default_factory=set)
    divisors: set[str] = field(default_factory=set)
    summed_rows: set[str] = field(default_factory=set)
    approximate: bool = False
    approximations: dict[str, LabelArray] = field(default_factory=dict)
    uncounted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._slots_by_id = {id(slot.tensor): slot for slot in self.slots.values()}
        self._slots_by_data = {
            (slot.tensor.data_ptr(), slot.tensor.shape): slot
            for slot in self.slots.values()
            if slot.tensor.numel()
        }

    def slot_of(self, tensor: Tensor) -> Slot | None:
        """The parameter or buffer that a tensor is, also through ``.data``."""
        slot = self._slots_by_id.get(id(tensor))
        if slot is None and tensor.numel() and tensor.layout is torch.strided:
            slot = self._slots_by_data.get((tensor.data_ptr(), tensor.shape))
            if slot is not None and slot.tensor.stride() != tensor.stride():
                slot = None
        return slot

    def labels_of_slot(self, name: str) -> Labels:
        """Labels of a parameter or buffer, made at the first meeting; size 1 has none."""
        if name not in self.slot_labels:
            shape = self.slots[name].tensor.shape
            self.slot_labels[name] = [self.store.fresh(n) if n > 1 else None for n in shape]
        return self.slot_labels[name]


Place = tuple[str, int, str]
"""Where an op runs: the module, the position within its call, the name of the op."""


@dataclass
class OpRecord:
    """One op of a recorded pass: enough to predict every shape of the shrunk pass.

    Attributes:
        name: qualified op name.
        module: module whose forward ran it.
        line: the op's place in the code: the class that runs it, the name of the running module
            in it, and the op's position within that module's call.
        inputs: labels of its tensor arguments.
        outputs: labels of its results.
        shapes: shapes of its results, full size.
        reads_floats: whether any of its arguments is a floating-point tensor.
        arguments: what it was given, :func:`described`.
        lasting: whether its rule has done all there is to do once the op has run.
    """

    name: str
    module: str
    line: tuple[str, str, int]
    inputs: tuple[Labels, ...]
    outputs: tuple[Labels, ...]
    shapes: tuple[tuple[int, ...], ...]
    reads_floats: bool
    arguments: Any = None
    lasting: bool = False

    @property
    def place(self) -> Place:
        """Where it ran."""
        return self.module, self.line[-1], self.name

    def is_like(self, other: OpRecord) -> bool:
        """Whether the same line of code made tensors of the same shapes by the same op."""
        mine, others = (self.name, self.line, self.shapes), (other.name, other.line, other.shapes)
        return mine == others

    def repeats(self, inputs: tuple[Labels, ...], arguments: Any) -> bool:
        """Whether the op runs once more, on the same labels and with the same arguments."""
        if arguments != self.arguments or len(inputs) != len(self.inputs):
            return False
        pairs = zip(self.inputs, inputs, strict=True)
        return all(len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in pairs)

    @property
    def dims(self) -> list[DimLabels]:
        """The labels of all dimensions of its arguments and results, in order."""
        return [dim for labels in (*self.inputs, *self.outputs) for dim in labels]


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in an op's arguments or result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, (list, tuple)):
        return []
    found: list[Tensor] = []
    for item in value:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)) and not _of_numbers(item):
            found += tensors_in(item)
    return found


def _of_numbers(items: Sequence[Any]) -> bool:
    """Whether a list holds sizes, strides and the like: lists of ops are of one kind."""
    return bool(items) and type(items[0]) in (int, float, bool)


_PLAIN = (int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def described(value: Any) -> Any:
    """Arguments of an op as plain data that can be compared: tensors by shape, strides and dtype.

    Args:
        value: an argument, or a list or tuple of them.

    Returns:
        Nested tuples; what is neither tensor nor plain equals nothing.
    """
    if isinstance(value, Tensor):
        return tuple(value.shape), _strides(value), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_described_item, value))
    return value if isinstance(value, _PLAIN) else object()


def _described_item(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and _of_numbers(value):
        return tuple(value)
    return described(value)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tensor.stride() if tensor.layout is torch.strided else ()
