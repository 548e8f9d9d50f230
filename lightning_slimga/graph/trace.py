"""What watching a network has taught: labels of its tensors, costs, and every op that ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_slimga.graph.labels import DimLabels, LabelArray, Labels, LabelStore
from lightning_slimga.graph.tensors import Slot, memory_of


@dataclass(frozen=True)
class CostTerm:
    """MACs of one op: ``constant`` times the live size of each labelled dimension.

    Attributes:
        module: name of the module whose forward ran the op.
        constant: product of the sizes that no mask changes.
        factors: labels of the dimensions that shrink.
        over: if one index of these is left, the op costs nothing.
    """

    module: str
    constant: int
    factors: tuple[LabelArray, ...]
    over: DimLabels = None


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
    """Everything that watching forward passes has taught; shared by all passes of an analysis.

    `borders` holds the labels of the tensors that go into and come out of the members of module
    lists and dicts, by the member's name.
    """

    store: LabelStore
    slots: dict[str, Slot]
    modules: dict[str, nn.Module]
    slot_labels: dict[str, Labels] = field(default_factory=dict)
    attributes: dict[tuple[str, str], SizeAttribute] = field(default_factory=dict)
    scaling_factors: set[str] = field(default_factory=set)
    contracted_buffers: set[str] = field(default_factory=set)
    divisors: set[tuple[str, int]] = field(default_factory=set)
    summed_rows: set[str] = field(default_factory=set)
    approximate: bool = False
    approximations: dict[str, LabelArray] = field(default_factory=dict)
    uncounted: set[str] = field(default_factory=set)
    borders: list[tuple[str, Labels]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._slots_by_id = {id(slot.tensor): slot for slot in self.slots.values()}
        self._slots_by_data = {
            (slot.tensor.data_ptr(), slot.tensor.shape): slot
            for slot in self.slots.values()
            if slot.tensor.numel() and slot.tensor.layout is torch.strided
        }
        self._parameters_by_memory: dict[int, list[Slot]] = {}
        for slot in self.slots.values():
            if slot.is_parameter and slot.tensor.numel():
                self._parameters_by_memory.setdefault(memory_of(slot.tensor), []).append(slot)

    def slot_of(self, tensor: Tensor) -> Slot | None:
        """The parameter or buffer that a tensor is, also through ``.data``."""
        slot = self._slots_by_id.get(id(tensor))
        if slot is None and tensor.numel() and tensor.layout is torch.strided:
            slot = self._slots_by_data.get((tensor.data_ptr(), tensor.shape))
            if slot is not None and slot.tensor.stride() != tensor.stride():
                slot = None
        return slot

    def parameters_behind(self, tensor: Tensor) -> list[Slot]:
        """The parameters whose memory a tensor shows, as a view of one does."""
        return self._parameters_by_memory.get(memory_of(tensor), [])

    def labels_of_slot(self, name: str) -> Labels:
        """Labels of a parameter or buffer, made at the first meeting; size 1 has none."""
        if name not in self.slot_labels:
            shape = self.slots[name].shape
            self.slot_labels[name] = [self.store.fresh(n) if n > 1 else None for n in shape]
        return self.slot_labels[name]


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
    """

    name: str
    module: str
    line: tuple[str, str, int]
    inputs: tuple[Labels, ...]
    outputs: tuple[Labels, ...]
    shapes: tuple[tuple[int, ...], ...]
    reads_floats: bool

    def __repr__(self) -> str:
        shapes = ", ".join(map(str, self.shapes))
        return f"<{self.name.replace('::', '.')} in {self.module or 'the model'} -> {shapes}>"

    def is_like(self, other: OpRecord) -> bool:
        """Whether the same line of code made tensors of the same shapes by the same op."""
        mine, others = (self.name, self.line, self.shapes), (other.name, other.line, other.shapes)
        return mine == others

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
