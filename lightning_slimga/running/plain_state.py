"""The plain data that a program has within reach of some objects, as they are now.

What is walked: lists, tuples, dicts, sets and deques; attributes (also slots) of objects of the
user's classes; of what torch and other libraries have made, all modules, optimizers, schedulers,
loaders and whatever else can be called, indexed, iterated or asked for a `state_dict`. What is
restored: content of containers, attributes, random number generators, arrays and tensors that are
not large. Parameters are left alone, and so is what lives a life of its own: Trainers, loggers,
strategies, objects of the standard library (threads, files, locks), and classes themselves.

The walk is breadth first and bounded; what is too many or too large for it is data, not state.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_slimga.running.containers import CONTAINERS, Content
from lightning_slimga.running.generators import rewinder

_OBJECTS = 2**15  # are visited at most
_ITEMS = 2**12  # of a container are looked into at most: more are a data set
_ELEMENTS = 2**16  # of a tensor or an array that is kept
_ALL_ELEMENTS = 2**23
_ATOMS = {
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    types.FunctionType,
    types.MethodType,
    type,
}
_LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
_LIVELY = {"Trainer", "Logger", "Strategy", "Profiler", "Accelerator", "Precision", "_Loop"}
_OF_TORCH = (nn.Module, Optimizer, DataLoader, Dataset, Sampler)
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_PROTOCOLS = ("state_dict", "__call__", "__getitem__", "__iter__")


class PlainState:
    """What can be reached from some objects, to be put back; see the module.

    Args:
        roots: where the walk begins; these are looked into whatever their classes.

    Attributes:
        tensors: those that may have been changed in place, each with a copy of its content;
            `restore` leaves them to whoever can compare many at once.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.tensors: list[tuple[Tensor, Tensor]] = []
        self._contents: list[Content] = []
        self._undo: list[Callable[[], None]] = []
        self._room = _ALL_ELEMENTS
        self._seen: set[int] = set()
        self._waiting: deque[Any] = deque()
        self._roots = list(roots)  # kept, so that no other object gets their ids meanwhile
        for root in self._roots:
            if id(root) not in self._seen and type(root) not in _ATOMS:
                self._seen.add(id(root))
                self._look_at(root, root=True)
        while self._waiting and len(self._seen) < _OBJECTS:
            self._look_at(self._waiting.popleft())

    def restore(self) -> None:
        """Put back everything but the content of `tensors`; what has not changed is not touched."""
        for content in self._contents:
            content.restore()
        for undo in self._undo:
            undo()

    def _reach(self, values: Iterable[Any]) -> None:
        for value in values:
            if type(value) not in _ATOMS and id(value) not in self._seen:
                self._seen.add(id(value))
                self._waiting.append(value)

    def _look_at(self, value: Any, *, root: bool = False) -> None:
        if isinstance(value, CONTAINERS):
            self._keep_content(value)
        elif isinstance(value, tuple):
            self._reach(value[:_ITEMS])
        elif isinstance(value, Tensor):
            self._keep_tensor(value)
        elif isinstance(value, np.ndarray):
            self._keep_array(value)
        elif isinstance(value, nn.Module):
            self._keep_attributes(value)
        elif (rewind := rewinder(value)) is not None:
            self._undo.append(rewind)
        elif root or _is_open(type(value)):
            self._keep_attributes(value)
        if isinstance(value, CONTAINERS) and hasattr(value, "__dict__"):  # of a user's subclass
            self._keep_content(vars(value))

    def _keep_content(self, container: Any) -> None:
        content = Content(container)
        self._contents.append(content)
        if len(content.values) <= _ITEMS:
            self._reach(content.values)

    def _keep_attributes(self, owner: Any) -> None:
        if hasattr(owner, "__dict__"):
            self._keep_content(vars(owner))
        names = _slots(type(owner))
        if names:
            before = {name: getattr(owner, name) for name in names if hasattr(owner, name)}
            self._undo.append(lambda: _write(owner, before, names))
            self._reach(before.values())

    def _keep_tensor(self, tensor: Tensor) -> None:
        if isinstance(tensor, nn.Parameter) or nn.parameter.is_lazy(tensor):
            return
        plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_inference())
        if plain and self._has_room(tensor.numel()):
            self.tensors.append((tensor, tensor.detach().clone()))

    def _keep_array(self, array: np.ndarray[Any, Any]) -> None:
        if array.dtype != object and array.flags.writeable and self._has_room(array.size):
            before = array.copy()

            def undo() -> None:
                if array.shape != before.shape or array.tobytes() != before.tobytes():
                    array[...] = before

            self._undo.append(undo)

    def _has_room(self, elements: int) -> bool:
        fits = elements <= min(_ELEMENTS, self._room)
        self._room -= elements if fits else 0
        return fits


def _write(owner: Any, before: dict[str, Any], names: Iterable[str]) -> None:
    """Give slots their former values, past what a user's class does when they are set."""
    for name in names:
        if name in before:
            object.__setattr__(owner, name, before[name])
        elif hasattr(owner, name):
            object.__delattr__(owner, name)


def _is_open(kind: type) -> bool:
    """Whether objects of a class are looked into."""
    if issubclass(kind, _NAMESPACES):
        return True
    if any(c.__name__ in _LIVELY and _top(c.__module__) in _LIGHTNING for c in kind.__mro__):
        return False
    place = _place(kind.__module__)
    if place == "torch":
        return issubclass(kind, _OF_TORCH) or hasattr(kind, "state_dict")
    return place == "own" or (
        place == "library" and any(hasattr(kind, name) for name in _PROTOCOLS)
    )


def _slots(kind: type) -> list[str]:
    if all("__slots__" not in vars(c) for c in kind.__mro__):
        return []
    return [
        name
        for c in kind.__mro__
        for name, value in vars(c).items()
        if isinstance(value, types.MemberDescriptorType)
    ]


def _top(module: str) -> str:
    return module.partition(".")[0]


@lru_cache(maxsize=4096)
def _place(module: str) -> str:
    """Whose a module is, by its name: "own" (the user's), "torch", "library" or "closed"."""
    top = _top(module)
    if top == "torch":
        return "torch"
    if top in sys.stdlib_module_names or top in _LIGHTNING or top == __name__.partition(".")[0]:
        return "closed"
    file = str(getattr(sys.modules.get(module), "__file__", None))
    return "library" if "site-packages" in file or "dist-packages" in file else "own"
