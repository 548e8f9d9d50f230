"""What no call has reached: it is left as it is, so what it might read must be known, or stay."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_slimga.graph.layers import Layer
from lightning_slimga.graph.trace import Trace

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Unreached:
    """A module with parameters, or a parameter, that no call has read.

    Attributes:
        name: its name in the network.
        layers: names of the layers whose channels it could read: they have a size in common, and
            do not lie within a module that it is not in.
    """

    name: str
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        layers = ", ".join(self.layers[:3]) + (" …" if len(self.layers) > 3 else "")
        return f"{self.name} (could read {layers})" if layers else self.name


def keep_around_unreached(trace: Trace) -> None:
    """Freeze what goes into and comes out of the reached members of a list with unreached ones.

    The members of a ``ModuleList`` or ``ModuleDict`` take each other's place (experts, heads of
    several tasks, norms of several domains): one that was not reached reads what they read.

    Args:
        trace: of all passes.
    """
    for name in _names(trace):
        parent, _, _ = name.rpartition(".")
        if isinstance(trace.modules.get(parent), _CONTAINERS) and name in trace.modules:
            why = f"goes into or out of a sibling of {name}, which no call has reached"
            for sibling, labels in trace.borders:
                if sibling.rpartition(".")[0] == parent:
                    trace.store.freeze_all(labels, why)


def find_unreached(trace: Trace, layers: Sequence[Layer]) -> tuple[Unreached, ...]:
    """List what no call has reached, the outermost modules, and the layers that it could read.

    Args:
        trace: of all passes.
        layers: of which channels may go.
    """
    found = []
    for name in _names(trace):
        sizes = {
            size
            for slot in trace.slots.values()
            if slot.name == name or any(_is_in(module, name) for module, _ in slot.places)
            for size in slot.shape
            if size > 1
        }
        could = [
            layer.name
            for layer in layers
            if _is_in(name, _home(layer))
            and any(trace.slots[tensor].shape[dim] in sizes for tensor, dim in layer.tensors)
        ]
        found.append(Unreached(name, tuple(could)))
    return tuple(found)


def raised_in(error: BaseException, names: Sequence[str], model: nn.Module) -> str | None:
    """Which of some modules was running when an error was raised; None if none was."""
    found = dict(model.named_modules())
    owners = {id(m): name for name in names if name in found for m in found[name].modules()}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = owners.get(id(frame.f_locals.get("self")))
        if name is not None:
            return name
    return None


def _names(trace: Trace) -> list[str]:
    """The outermost modules without a parameter that was read, and single parameters like them."""
    read: dict[str, bool] = {}
    for slot in trace.slots.values():
        if slot.is_parameter:
            for module, _ in slot.places:
                for outer in _path(module):
                    read[outer] = read.get(outer, False) or slot.name in trace.slot_labels
    modules = [name for name, seen in read.items() if not seen and _read_around(name, read)]
    single = [
        slot.name
        for slot in trace.slots.values()
        if slot.is_parameter
        and slot.name not in trace.slot_labels
        and slot.tensor.numel() > 1
        and all(read[module] for module, _ in slot.places)
    ]
    return modules + single


def _read_around(name: str, read: Mapping[str, bool]) -> bool:
    return not name or read[name.rpartition(".")[0]]


def _path(module: str) -> list[str]:
    """A module and all that it is in, the network itself first."""
    parts = module.split(".") if module else []
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _home(layer: Layer) -> str:
    """The innermost module in which all lies that makes and reads a layer's channels."""
    paths = [_path(tensor.rpartition(".")[0]) for tensor, _ in layer.tensors]
    return [outer for outer in paths[0] if all(outer in path for path in paths)][-1]


def _is_in(module: str, outer: str) -> bool:
    return not outer or module == outer or module.startswith(f"{outer}.")
