"""Watch one real forward pass and hand every ATen op to its rule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slimga.graph.labels import DimLabels, Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import find_rule
from lightning_slimga.graph.replay import Replay
from lightning_slimga.graph.signature import Signature
from lightning_slimga.graph.tensor_map import TensorMap
from lightning_slimga.graph.trace import CostTerm, OpRecord, Trace, described, tensors_in

_TWICE = r"Using `torch.compile\(module\)` when there are global hooks"


class Tracer(TorchDispatchMode):
    """A dispatch mode that carries labels along a forward pass.

    Args:
        trace: what is known so far; grows.
        replay: runs the ops; holds what another pass has computed, if this is the second.
        earlier: ops of another pass; where the same one runs again its rule has nothing to add.
    """

    def __init__(
        self, trace: Trace, replay: Replay | None = None, earlier: Sequence[OpRecord] = ()
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self._earlier = {record.place: record for record in earlier if record.lasting}
        self._replay = replay or Replay(room=0)
        self.costs: list[CostTerm] = []
        self.records: list[OpRecord] = []
        self.module_name = ""
        self._position = 0
        self._stack: list[tuple[str, int]] = []
        self._labels: TensorMap[Labels] = TensorMap()
        self._unread: TensorMap[list[tuple[DimLabels, str]]] = TensorMap()
        self._codes: dict[str, tuple[str, str]] = {}
        self._names = {id(module): name for name, module in trace.modules.items()}
        self._handles: list[Any] = []
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> Tracer:
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", _TWICE)  # being told twice that a module runs is fine
        hooks = nn.modules.module
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._warnings.__exit__(*exception)

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._stack.append((self.module_name, self._position))
        self.module_name = self._names.get(id(module), self.module_name)
        self._position = 0

    def _leave_module(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        self.module_name, self._position = self._stack.pop()

    def _code_of(self, module: str) -> tuple[str, str]:
        """The user's class that runs a module, and the module's name in it.

        The code of torch's own modules (``Conv2d``, ``Sequential``) and of ours is everybody's:
        what holds for one of them says nothing about the others.
        """
        if module not in self._codes:
            self._codes[module] = ("", module)
            parts = module.split(".") if module else []
            for depth in range(len(parts), -1, -1):
                owner = type(self.trace.modules[".".join(parts[:depth])])
                if not owner.__module__.startswith(("torch.", "lightning_slimga.")):
                    self._codes[module] = (owner.__qualname__, ".".join(parts[depth:]))
                    break
        return self._codes[module]

    def freeze_if_read(self, tensor: Tensor, labels: DimLabels, why: str) -> None:
        """Freeze labels as soon as something reads a tensor that depends on all of them."""
        self._unread[tensor] = [*(self._unread.pop(tensor) or ()), (labels, why)]

    def lookup(self, tensor: Tensor) -> Labels:
        """Labels of any tensor of the pass, which is read here."""
        for dim, why in self._unread.pop(tensor) or ():
            self.trace.store.freeze(dim, why)
        labels = self._labels.get(tensor)
        if labels is None:
            slot = self.trace.slot_of(tensor)
            if slot is None:
                return [None] * tensor.dim()
            labels = self.trace.labels_of_slot(slot.name)
            self._labels[tensor] = labels
        return labels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        arguments = Signature.of(func).bind(args, kwargs)
        if torch.Tag.inplace_view in func.tags:
            arguments[0] = self._as_it_is(arguments[0])
        self._position += 1
        place = self.module_name, self._position, func._schema.name
        described_before = described(arguments)
        out = self._replay.run(place, func, args, kwargs)
        self._propagate(Op(self, func, arguments, tensors_in(out)), described_before)
        return out

    def _as_it_is(self, tensor: Tensor) -> Tensor:
        """An alias that keeps the present shape and labels when an op gives ``tensor`` others."""
        alias = tensor.detach()
        self._labels[alias] = self.lookup(tensor)
        return alias

    def _propagate(self, op: Op, arguments: Any) -> None:
        inputs = tuple(op.inputs[id(t)] for t in op.tensors)
        record = self._earlier.get((op.module, self._position, op.name))
        if record is None or not record.repeats(inputs, arguments):
            outputs = tuple(self._apply_rule(op, list(inputs)))
            record = OpRecord(
                op.name,
                op.module,
                (*self._code_of(op.module), self._position),
                inputs,
                outputs,
                tuple(tuple(t.shape) for t in op.outputs),
                any(t.is_floating_point() for t in op.tensors),
                arguments,
                not any(self._unread.get(t) for t in op.outputs),
            )
        for tensor, labels in zip(op.outputs, record.outputs, strict=True):
            self._labels[tensor] = labels
        self.records.append(record)

    def _apply_rule(self, op: Op, inputs: list[Labels]) -> list[Labels]:
        rule = find_rule(op.name)
        if rule is None and torch.Tag.pointwise in op.func.tags:
            rule = find_rule("aten::pointwise")
        if rule is None:
            if any(op.is_weight(t) for t in op.tensors):
                self.trace.uncounted.add(op.name)
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
        written = Signature.of(op.func).written
        for tensor in tensors_in([op.arguments[i] for i in written]):
            for position, out in enumerate(op.outputs):
                if out is tensor:
                    old = op.inputs[id(tensor)]
                    pairs = zip(old, outputs[position], strict=True)
                    outputs[position] = [op.tie(a, b) for a, b in pairs]


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
