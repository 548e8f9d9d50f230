"""Watch one real forward pass and hand every ATen op to its rule."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_slimga.graph.forward_pass import ForwardPass
from lightning_slimga.graph.labels import Labels
from lightning_slimga.graph.op import Op
from lightning_slimga.graph.registry import find_rule
from lightning_slimga.graph.signature import Signature
from lightning_slimga.graph.trace import OpRecord, Trace, tensors_in
from lightning_slimga.graph.zeros import follow

_TWICE = r"Using `torch.compile\(module\)` when there are global hooks"


class Tracer(TorchDispatchMode):
    """A dispatch mode that carries labels along a forward pass.

    Args:
        trace: what is known so far; grows.

    Attributes:
        seen: the labels, costs and ops of this pass.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.seen = ForwardPass(trace)
        self._position = 0
        self._stack: list[tuple[str, int]] = []
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
            *self._watch_members(),
        ]
        self.seen.einsums.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self.seen.einsums.__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._warnings.__exit__(*exception)

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._stack.append((self.seen.module, self._position))
        self.seen.module = self._names.get(id(module), self.seen.module)
        self._position = 0

    def _leave_module(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        self.seen.module, self._position = self._stack.pop()

    def _watch_members(self) -> Iterator[Any]:
        """Hooks for the members of module lists and dicts (a global one leaves traces in torch)."""
        modules = self.trace.modules
        for name, module in modules.items():
            owner = modules.get(name.rpartition(".")[0])
            if isinstance(owner, (nn.ModuleList, nn.ModuleDict)):
                yield module.register_forward_hook(partial(self._note, name), with_kwargs=True)

    def _note(self, name: str, _: nn.Module, *values: Any) -> None:
        """What goes into a member, by position and by name, and what comes out of it."""
        for tensor in tree_leaves(values):
            labels = self.seen.known(tensor) if isinstance(tensor, Tensor) else None
            if labels is not None:
                self.trace.borders.append((name, labels))

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

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        arguments = Signature.of(func).bind(args, kwargs)
        if torch.Tag.inplace_view in func.tags:
            arguments[0] = self._as_it_is(arguments[0])
        self._position += 1
        out = func(*args, **kwargs)
        self._propagate(Op(self.seen, func, arguments, tensors_in(out)))
        return out

    def _as_it_is(self, tensor: Tensor) -> Tensor:
        """An alias that keeps the present shape and labels when an op gives ``tensor`` others."""
        alias = tensor.detach()
        self.seen.label(alias, self.seen.lookup(tensor))
        return alias

    def _propagate(self, op: Op) -> None:
        inputs = tuple(op.inputs[id(t)] for t in op.tensors)
        outputs = tuple(self._apply_rule(op, list(inputs)))
        for tensor, labels in zip(op.outputs, outputs, strict=True):
            self.seen.label(tensor, labels)
        follow(op, outputs)
        self.seen.records.append(
            OpRecord(
                op.name,
                op.module,
                (*self._code_of(op.module), self._position),
                inputs,
                outputs,
                tuple(tuple(t.shape) for t in op.outputs),
                any(t.is_floating_point() for t in op.tensors),
            )
        )

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
