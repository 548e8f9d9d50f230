"""Pairing: which recorded op of the full network an op of another pass stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_slimga.graph.trace import OpRecord, tensors_in

_COPY = "aten::clone"
"""``reshape`` and ``contiguous`` copy or do not, as the strides come out: a matter of sizes."""

_VIEWS = {"aten::view", "aten::_unsafe_view"}
"""What ``reshape`` does without and after a copy."""


class Pairing:
    """Walk through the records of a pass beside another one, as long as both run the same ops.

    Args:
        records: the recorded ops.

    Attributes:
        parted: whether the other pass has gone another way; nothing is paired from there on.
    """

    def __init__(self, records: Sequence[OpRecord]) -> None:
        self.parted = False
        self._records = records
        self._next = 0

    @property
    def position(self) -> int:
        """Position of the record that was paired last."""
        return self._next - 1

    @property
    def upcoming(self) -> OpRecord | None:
        """The record that comes next; None where the passes have parted, or at the end."""
        inside = not self.parted and self._next < len(self._records)
        return self._records[self._next] if inside else None

    @property
    def complete(self) -> bool:
        """Whether every record has been paired."""
        return not self.parted and self._next == len(self._records)

    def step(self, name: str) -> OpRecord | None:
        """The record of the op that runs now; None where there is none.

        Args:
            name: qualified name of the op.
        """
        record = self.upcoming
        if record is not None and record.name == _COPY != name:
            self._next += 1
            record = self.upcoming
        if self.parted or (name == _COPY and (record is None or record.name != _COPY)):
            return None
        if record is None or (record.name != name and not {record.name, name} <= _VIEWS):
            self.parted = True
            return None
        self._next += 1
        return record


def size_depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the size of an op's result depends on what is in its arguments."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    masks = [t for t in tensors_in(args) if t.dtype in (torch.bool, torch.uint8)]
    return func._schema.name != "aten::index" or bool(masks)


def asks_for_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a program may go another way by what is in the arguments of an op."""
    return torch.Tag.data_dependent_output in func.tags or size_depends_on_values(func, args)
