"""Lists, dicts, sets and deques that get their former content back and stay the same objects."""

from __future__ import annotations

from collections import OrderedDict, deque
from operator import is_
from typing import Any

CONTAINERS = (list, dict, set, deque)
MANY = 2**14
"""Of a container with more items only the length is remembered: what was appended goes again."""


class Content:
    """What a container holds now.

    Args:
        container: a list, dict, set or deque, or one of a subclass, which may refuse to be changed.

    Attributes:
        values: items, of a dict without their keys; empty where they are too many.
    """

    __slots__ = ("_container", "_keys", "_length", "values")

    def __init__(self, container: Any) -> None:
        self._container, self._length = container, len(container)
        self._keys: list[Any] = []
        self.values: list[Any] = []
        if 0 < self._length <= MANY:
            self._keys, self.values = _items(container)

    def restore(self) -> None:
        """Write it back, if there is anything else in the container by now."""
        container, length = self._container, self._length
        if length > MANY:
            self._cut()
        elif len(container) != length or (length and not self._is_held()):
            self._refill()

    def _is_held(self) -> bool:
        """Whether the container still holds these objects, in this order."""
        keys, values = _items(self._container)
        return all(map(is_, values, self.values)) and all(map(is_, keys, self._keys))

    def _refill(self) -> None:
        container, kind = self._container, _kind(self._container)
        kind.clear(container)
        if isinstance(container, dict):
            for key, value in zip(self._keys, self.values, strict=True):
                kind.__setitem__(container, key, value)
        else:
            (kind.update if kind is set else kind.extend)(container, self.values)

    def _cut(self) -> None:
        container, kind = self._container, _kind(self._container)
        while len(container) > self._length and kind is not set:
            (kind.popitem if isinstance(container, dict) else kind.pop)(container)


def _kind(container: Any) -> Any:
    """The built-in type whose methods are asked: those of a user's subclass may refuse, or act."""
    kinds = OrderedDict, *CONTAINERS
    exact = type(container)
    return exact if exact in kinds else next(kind for kind in kinds if isinstance(container, kind))


def _items(container: Any) -> tuple[list[Any], list[Any]]:
    """Keys, of a dict alone, and values."""
    kind = _kind(container)
    if isinstance(container, dict):
        return list(kind.keys(container)), list(kind.values(container))
    return [], list(kind.__iter__(container))
