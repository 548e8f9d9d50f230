"""Watch one real forward pass and hand every ATen op to its rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_slimga.graph.labels import NOTHING, DimLabels, LabelArray, Labels, LabelStore
from lightning_slimga.graph.registry import find_rule
from lightning_slimga.graph.slots import Slot


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
    choices: dict[int, int] = field(default_factory=dict)
    approximate: bool = False
    approximations: dict[str, None] = field(default_factory=dict)

    def labels_of_slot(self, name: str) -> Labels:
        """Labels of a parameter or buffer, made at the first meeting; size 1 has none."""
        if name not in self.slot_labels:
            shape = self.slots[name].tensor.shape
            self.slot_labels[name] = [self.store.fresh(n) if n > 1 else None for n in shape]
        return self.slot_labels[name]


@dataclass
class OpRecord:
    """One op of a recorded pass: enough to predict every shape of the shrunk pass.

    Attributes:
        name: qualified op name.
        module: module whose forward ran it.
        line: the op's place in the code: module class and position within the module's call.
        inputs: labels of its tensor arguments.
        outputs: labels of its results.
        shapes: shapes of its results, full size.
    """

    name: str
    module: str
    line: tuple[str, int]
    inputs: tuple[Labels, ...]
    outputs: tuple[Labels, ...]
    shapes: tuple[tuple[int, ...], ...]


class Op:
    """One executed op, as its rule sees it.

    Attributes:
        func: the ATen overload.
        module: name of the module whose forward is running.
        outputs: the output tensors, flat.
    """

    def __init__(self, tracer: Tracer, func: Any, arguments: list[Any], outputs: list[Tensor]):
        self._tracer = tracer
        self.trace = tracer.trace
        self.store = tracer.trace.store
        self.func = func
        self.name: str = func._schema.name
        self.module = tracer.module_name
        self.arguments = arguments
        self.outputs = outputs

    @property
    def where(self) -> str:
        """The op and its module in words, for reasons."""
        return f"op {self.name.replace('::', '.')} in {self.module or 'the model'}"

    @property
    def number(self) -> int:
        """Position of this op in the running pass."""
        return len(self._tracer.records)

    def labels(self, tensor: Tensor | None) -> Labels:
        """Labels of a tensor argument: one entry per dimension (a fresh list)."""
        return [] if tensor is None else list(self._tracer.lookup(tensor))

    def full(self, labels: DimLabels, size: int) -> LabelArray:
        """The labels of a dimension as an array, ``NOTHING`` everywhere if it has none."""
        return np.full(size, NOTHING, dtype=np.int64) if labels is None else labels

    def tie(self, a: DimLabels, b: DimLabels, why: str | None = None) -> DimLabels:
        """Tie two dimensions of equal size and return the labels that stand for both."""
        if a is None and b is None:
            return None
        if a is None or b is None:
            self.store.freeze(
                b if a is None else a, why or f"meets a tensor without channels at {self.where}"
            )
            return None
        self.store.tie(a, b, why or f"meets a tensor without channels at {self.where}")
        return a

    def freeze(self, labels: DimLabels, why: str) -> None:
        """Never remove these channels."""
        self.store.freeze(labels, f"{why} ({self.where})")

    def freeze_all(self, tensor: Tensor, why: str) -> None:
        """Never remove any channel of a tensor."""
        for dim in self.labels(tensor):
            self.freeze(dim, why)

    def contract(self, a: DimLabels, b: DimLabels) -> None:
        """Tie two dimensions that are multiplied and summed over."""
        self.tie(a, b)

    def reads(self, tensor: Tensor) -> None:
        """Say that a tensor is the weight of a contraction: masking zeroes it, buffer or not."""
        slot = self._tracer.slot_of(tensor)
        if slot is not None and not slot.is_parameter:
            self.trace.contracted_buffers.add(slot.name)

    def scaling_factor(self, weight: Tensor | None) -> None:
        """Mark the γ of a normalisation; found through the module when it arrives repeated."""
        if weight is None:
            return
        slot = self._tracer.slot_of(weight)
        name = slot.name if slot else f"{self.module}.weight".lstrip(".")
        if name in self.trace.slots and self.trace.slots[name].is_parameter:
            self.trace.scaling_factors.add(name)

    def macs(self, *sizes: int | tuple[DimLabels, int]) -> None:
        """Add a cost term: the product of ``sizes``, each a number or ``(labels, size)``.

        Ops that torch's own counter leaves out (the CPU kernel of fused attention) cost nothing,
        so that the two agree on every device.
        """
        if self.func.overloadpacket not in flop_registry:
            return
        constant, factors = 1, []
        for size in sizes:
            if isinstance(size, int):
                constant *= size
            elif size[0] is None:
                constant *= size[1]
            else:
                factors.append(size[0])
        self._tracer.costs.append(CostTerm(self.module, constant, tuple(factors)))

    def attribute(self, names: tuple[str, ...], labels: DimLabels, *near: Tensor | None) -> bool:
        """Say that an attribute counts the units of ``labels``; it is rewritten by surgery.

        Looked for on the running module and on the owners of the tensors ``near``; taken only
        where its value is the present size.

        Returns:
            Whether some module has such an attribute.
        """
        if labels is None:
            return False
        found = False
        for module_name in self._holders(near):
            module = self.trace.modules[module_name]
            for name in names:
                if _attribute_value(module, name) == len(labels):
                    key = (module_name, name)
                    known = self.trace.attributes.get(key)
                    if known is None:
                        self.trace.attributes[key] = SizeAttribute(module_name, name, labels)
                    else:
                        self.tie(known.labels, labels)
                    found = True
        return found

    def _holders(self, near: tuple[Tensor | None, ...]) -> list[str]:
        holders = {self.module: None}
        for tensor in near:
            slot = None if tensor is None else self._tracer.slot_of(tensor)
            for place, _ in slot.places if slot else ():
                holders[place.split(".parametrizations.")[0]] = None
        return list(holders)


def _attribute_value(module: nn.Module, name: str) -> Any:
    """``out_channels`` or, for an entry of a tuple, ``normalized_shape.-1``."""
    name, _, index = name.partition(".")
    value = module.__dict__.get(name)  # a property cannot be rewritten
    if index:
        value = value[int(index)] if isinstance(value, (tuple, list)) and value else None
    return value if type(value) is int else None


class Tracer(TorchDispatchMode):
    """A dispatch mode that carries labels along a forward pass.

    Args:
        trace: what is known so far; grows.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.costs: list[CostTerm] = []
        self.records: list[OpRecord] = []
        self.module_name = ""
        self._position = 0
        self._stack: list[tuple[str, int]] = []
        self._labels = WeakTensorKeyDictionary()
        self._slots = {id(slot.tensor): slot for slot in trace.slots.values()}
        self._slots_by_data = {
            (slot.tensor.data_ptr(), slot.tensor.shape): slot
            for slot in trace.slots.values()
            if slot.tensor.numel()
        }
        self._names = {id(module): name for name, module in trace.modules.items()}
        self._handles: list[Any] = []

    def __enter__(self) -> Tracer:
        hooks = nn.modules.module
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._stack.append((self.module_name, self._position))
        self.module_name = self._names.get(id(module), self.module_name)
        self._position = 0

    def _leave_module(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        self.module_name, self._position = self._stack.pop()

    def slot_of(self, tensor: Tensor) -> Slot | None:
        """The parameter or buffer that a tensor is, also through ``.data``."""
        slot = self._slots.get(id(tensor))
        if slot is None and tensor.numel() and tensor.layout is torch.strided:
            slot = self._slots_by_data.get((tensor.data_ptr(), tensor.shape))
            if slot is not None and slot.tensor.stride() != tensor.stride():
                slot = None
        return slot

    def lookup(self, tensor: Tensor) -> Labels:
        """Labels of any tensor of the pass."""
        labels: Labels | None = self._labels.get(tensor)
        if labels is None:
            slot = self.slot_of(tensor)
            if slot is None:
                return [None] * tensor.dim()
            labels = self.trace.labels_of_slot(slot.name)
            self._labels[tensor] = labels
        return labels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        arguments = _bind(func, args, kwargs)
        if torch.Tag.inplace_view in func.tags:
            arguments[0] = self._as_it_is(arguments[0])
        out = func(*args, **kwargs)
        self._propagate(Op(self, func, arguments, list(tensors_in(out))))
        return out

    def _as_it_is(self, tensor: Tensor) -> Tensor:
        """An alias that keeps the present shape and labels when an op gives ``tensor`` others."""
        alias = tensor.detach()
        self._labels[alias] = self.lookup(tensor)
        return alias

    def _propagate(self, op: Op) -> None:
        inputs = [self.lookup(t) for t in tensors_in(op.arguments)]
        outputs = self._apply_rule(op, inputs)
        for tensor, labels in zip(op.outputs, outputs, strict=True):
            self._labels[tensor] = labels
        shapes = tuple(tuple(t.shape) for t in op.outputs)
        self._position += 1
        line = (type(self.trace.modules[op.module]).__qualname__, self._position)
        self.records.append(
            OpRecord(op.name, op.module, line, tuple(inputs), tuple(outputs), shapes)
        )

    def _apply_rule(self, op: Op, inputs: list[Labels]) -> list[Labels]:
        rule = find_rule(op.name)
        if rule is None and torch.Tag.pointwise in op.func.tags:
            rule = find_rule("aten::pointwise")
        if rule is None:
            if any(dim is not None for labels in inputs for dim in labels):
                for labels in inputs:
                    self.trace.store.freeze_all(labels, f"{op.where} has no rule")
            return [[None] * t.dim() for t in op.outputs]
        try:
            outputs = _checked(rule(op, *op.arguments), op.outputs)
        except Exception as error:  # a broken rule must freeze, never guess or end a user's run
            for labels in inputs:
                self.trace.store.freeze_all(labels, f"the rule of {op.where} failed: {error!r}")
            return [[None] * t.dim() for t in op.outputs]
        self._settle_writes(op, outputs)
        return outputs

    def _settle_writes(self, op: Op, outputs: list[Labels]) -> None:
        """A tensor that an op writes into keeps its old labels, tied to what is written."""
        written = [
            value
            for argument, value in zip(op.func._schema.arguments, op.arguments, strict=True)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in tensors_in(written):
            for position, out in enumerate(op.outputs):
                if out is tensor:
                    old = self.lookup(tensor)
                    pairs = zip(old, outputs[position], strict=True)
                    outputs[position] = [op.tie(a, b) for a, b in pairs]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in an op's arguments or result, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All arguments in schema order, defaults filled in."""
    bound = list(args)
    for argument in func._schema.arguments[len(args) :]:
        bound.append(kwargs.get(argument.name, argument.default_value))
    return bound


def _checked(labels: Any, outputs: list[Tensor]) -> list[Labels]:
    """Post-condition of every rule: one entry per dimension, one label per index."""
    if labels is None:
        return [[None] * t.dim() for t in outputs]
    several = isinstance(labels, tuple)
    given = list(labels) if several else [labels]
    given += [None] * (len(outputs) - len(given))
    result: list[Labels] = []
    for tensor, one in zip(outputs, given, strict=True):
        one = [None] * tensor.dim() if one is None else list(one)
        sizes = [n if dim is None else len(dim) for dim, n in zip(one, tensor.shape, strict=True)]
        if sizes != list(tensor.shape):
            raise ValueError(f"labels of sizes {sizes} for a tensor of shape {tuple(tensor.shape)}")
        result.append([None if n == 1 else dim for dim, n in zip(one, tensor.shape, strict=True)])
    return result
