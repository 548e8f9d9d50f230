"""Values by tensor: by identity, and without keeping the tensor alive."""

from __future__ import annotations

from typing import Generic, TypeVar
from weakref import ReferenceType, ref

from torch import Tensor

T = TypeVar("T")


class TensorMap(Generic[T]):
    """A dictionary whose keys are tensors as objects; made for a look-up or two in every op.

    Entries of tensors that are gone stay, and are not found: their number may be another's now.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[ReferenceType[Tensor], T]] = {}

    def __setitem__(self, tensor: Tensor, value: T) -> None:
        self._entries[id(tensor)] = (ref(tensor), value)

    def get(self, tensor: Tensor) -> T | None:
        """The value of a tensor, if it has one."""
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def alive(self) -> list[Tensor]:
        """The tensors with a value that somebody still holds."""
        tensors = (reference() for reference, _ in self._entries.values())
        return [tensor for tensor in tensors if tensor is not None]

    def pop(self, tensor: Tensor) -> T | None:
        """The value of a tensor, if it has one; it has none afterwards."""
        entry = self._entries.pop(id(tensor), None) if self._entries else None
        return entry[1] if entry is not None and entry[0]() is tensor else None
