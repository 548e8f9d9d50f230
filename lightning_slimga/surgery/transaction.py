"""All or nothing: changes that are undone together when one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

_ABSENT = object()


class Transaction:
    """Record how to undo each change; an exception inside the ``with`` block undoes them all."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.roll_back()

    def roll_back(self) -> None:
        """Undo everything, the latest change first."""
        while self._undo:
            self._undo.pop()()

    def on_roll_back(self, undo: Callable[[], None]) -> None:
        """Register how to undo a change that was just made."""
        self._undo.append(undo)

    def set_item(self, container: Any, key: Any, value: Any) -> None:
        """``container[key] = value``; a dict keeps the order of its keys."""
        old = container[key]
        container[key] = value
        self.on_roll_back(lambda: container.__setitem__(key, old))

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """``owner.name = value``."""
        old = getattr(owner, name, _ABSENT)
        setattr(owner, name, value)
        if old is _ABSENT:
            self.on_roll_back(lambda: delattr(owner, name))
        else:
            self.on_roll_back(lambda: setattr(owner, name, old))
