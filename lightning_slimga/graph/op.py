"""One running op, as its rule sees it: look labels up, tie, freeze, count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from lightning_slimga.graph.forward_pass import ForwardPass
from lightning_slimga.graph.labels import NOTHING, DimLabels, LabelArray, Labels
from lightning_slimga.graph.trace import CostTerm, SizeAttribute, tensors_in

_LARGEST = 65_536  # no channel dimension is longer; keeps label memory small for big buffers


class Op:
    """One executed op, as its rule sees it.

    Example:
        >>> from lightning_slimga.graph import rule
        >>> @rule("mylib::squared")
        ... def squared(op: Op, x):
        ...     "(…) -> the same: what is zero stays zero."
        ...     return op.labels(x)

    Args:
        during: the pass that runs it.
        func: the ATen overload.
        arguments: its arguments in schema order, defaults filled in.
        outputs: what it has returned, flat.

    Attributes:
        func: the ATen overload.
        module: name of the module whose forward is running.
        outputs: the output tensors, flat.
        tensors: the tensor arguments, flat.
        inputs: labels of each tensor argument, by its ``id``.
    """

    def __init__(
        self, during: ForwardPass, func: Any, arguments: list[Any], outputs: list[Tensor]
    ) -> None:
        self._pass = during
        self.trace = during.trace
        self.store = during.trace.store
        self.func = func
        self.name: str = func._schema.name
        self.module = during.module
        self.arguments = arguments
        self.outputs = outputs
        self.tensors = tensors_in(arguments)
        self.inputs = {id(t): during.lookup(t) for t in self.tensors}

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(t.shape)) for t in self.tensors)
        return f"<{self.where}: {shapes}>"

    @property
    def where(self) -> str:
        """The op and its module in words, for reasons."""
        return f"op {self.name.replace('::', '.')} in {self.module or 'the model'}"

    def labels(self, tensor: Tensor | None) -> Labels:
        """Labels of a tensor argument: one entry per dimension (a fresh list)."""
        return [] if tensor is None else list(self.inputs[id(tensor)])

    def full(self, labels: DimLabels, size: int) -> LabelArray:
        """The labels of a dimension as an array, ``NOTHING`` everywhere if it has none."""
        return np.full(size, NOTHING, dtype=np.int64) if labels is None else labels

    def from_size(self, size: int) -> DimLabels:
        """Labels of their own for a dimension that was made from a size alone.

        If the size was computed from a channel count, the dimension shrinks along; if it is a
        number in the code, running the small model shows it, and they are frozen.
        """
        return self.store.fresh(size) if 1 < size <= _LARGEST else None

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

    def freeze_if_read(self, labels: DimLabels, why: str) -> None:
        """Never remove these channels if anything reads what the op returns."""
        for tensor in self.outputs:
            self._pass.freeze_if_read(tensor, labels, f"{why} ({self.where})")

    def contract(self, a: DimLabels, b: DimLabels) -> None:
        """Tie two dimensions that are multiplied and summed over."""
        self.tie(a, b)

    def reads(self, tensor: Tensor, *, over: int | None = None) -> None:
        """Say that a tensor is the weight of a contraction: masking zeroes it, buffer or not.

        Args:
            tensor: the weight.
            over: its dimension that is summed over. A parameter writes channels along dimension 0
                unless that is the one.
        """
        slot = self.trace.slot_of(tensor)
        if slot is None:
            return
        if over == 0:
            self.trace.summed_rows.add(slot.name)
        if not slot.is_parameter:
            self.trace.contracted_buffers.add(slot.name)

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter of two dimensions or more: what contractions read."""
        slot = self.trace.slot_of(tensor)
        return slot is not None and slot.is_parameter and tensor.dim() > 1

    def zeros(self, tensor: Tensor) -> frozenset[int]:
        """Dimensions of a tensor along which masking leaves zeros in the place of what goes."""
        return self._pass.zeros(tensor)

    def has_zeros(self, tensor: Tensor, dims: frozenset[int]) -> None:
        """Say that a result has such zeros along these of its dimensions, and no others."""
        self._pass.has_zeros(tensor, dims)

    def soils(self, tensor: Tensor) -> None:
        """Say that the op writes into a tensor what may be no zeros; a parameter then stays."""
        self._pass.soils(tensor)
        for slot in self.trace.parameters_behind(tensor):
            for dim in self.trace.labels_of_slot(slot.name):
                self.freeze(dim, "the forward pass writes into the parameter")

    def divides_by(self, tensor: Tensor, dim: int) -> None:
        """Say that slices of a tensor are divided by their norms: masking must not zero them."""
        slot = self.trace.slot_of(tensor)
        if slot is not None:
            self.trace.divisors.add((slot.name, dim))

    def scaling_factor(self, weight: Tensor | None) -> None:
        """Mark the γ of a normalisation; found through the module when it arrives repeated."""
        if weight is None:
            return
        slot = self.trace.slot_of(weight)
        name = slot.name if slot else f"{self.module}.weight".lstrip(".")
        if name in self.trace.slots and self.trace.slots[name].is_parameter:
            self.trace.scaling_factors.add(name)

    def macs(self, *sizes: int | tuple[DimLabels, int], over: DimLabels = None) -> None:
        """Add a cost term: the product of ``sizes``, each a number or ``(labels, size)``.

        Ops that torch's own counter leaves out (the CPU kernel of fused attention) cost nothing,
        so that the two agree on every device.

        Args:
            *sizes: the sizes.
            over: which of the labels are summed over. An einsum that is left with one of them
                multiplies without a product of matrices, which costs nothing either.
        """
        if self.func.overloadpacket not in flop_registry:
            self.trace.uncounted.add(self.name)
            return
        constant, factors = 1, []
        for size in sizes:
            if isinstance(size, int):
                constant *= size
            elif size[0] is None:
                constant *= size[1]
            else:
                factors.append(size[0])
        self._pass.costs.append(
            CostTerm(
                self.module, constant, tuple(factors), over if self._pass.einsums.running else None
            )
        )

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

    def list_attribute(
        self, words: tuple[str, ...], numbers: Sequence[int], parts: Sequence[DimLabels]
    ) -> bool:
        """Say that a list counts the units of parts, one by one, if the running module has it.

        Args:
            words: it has one of them in its name, lest another list of the same numbers be taken.
            numbers: the present sizes.
            parts: one label per unit of each.

        Returns:
            Whether it has; then surgery rewrites it, and the parts may shrink by themselves.
        """
        held = self.trace.modules[self.module].__dict__.items()
        names = [name for name, value in held if _is_list_of(value, numbers)]
        names = [name for name in names if any(word in name for word in words)]
        for name in names:
            for i, labels in enumerate(parts):
                self.attribute((f"{name}.{i}",), labels)
        return bool(names)

    def _holders(self, near: tuple[Tensor | None, ...]) -> list[str]:
        holders = {self.module: None}
        for tensor in near:
            slot = None if tensor is None else self.trace.slot_of(tensor)
            if slot is None and tensor is not None and tensor.dim() == 2:
                slot = self.trace.slot_of(tensor.t())  # a linear layer multiplies by its transpose
            for place, _ in slot.places if slot else ():
                holders[place.split(".parametrizations.")[0]] = None
        return list(holders)


def _attribute_value(module: nn.Module, name: str) -> Any:
    """``out_channels`` or, for an entry of a tuple, ``normalized_shape.-1``."""
    name, _, index = name.partition(".")
    if isinstance(getattr(type(module), name, None), property):
        return None  # it cannot be rewritten, and follows what it is computed from
    value = module.__dict__.get(name)
    if index:
        value = value[int(index)] if isinstance(value, (tuple, list)) and value else None
    return value if type(value) is int else None


def _is_list_of(value: Any, numbers: Sequence[int]) -> bool:
    plain = type(value) in (tuple, list) and all(type(entry) is int for entry in value)
    return plain and list(value) == list(numbers)
