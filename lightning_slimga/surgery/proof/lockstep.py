"""Lockstep: the shrunk network must run the same ops as the full one, with predicted shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slimga.graph.labels import DimLabels
from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.graph.trace import OpRecord, tensors_in
from lightning_slimga.surgery.masking import Mask

T = TypeVar("T")

_COPY = "aten::clone"
"""``reshape`` and ``contiguous`` copy or do not, as the strides come out: a matter of sizes."""

_VIEWS = {"aten::view", "aten::_unsafe_view"}
"""What ``reshape`` does without and after a copy."""


class Deviation(Exception):  # noqa: N818  (nothing is wrong with the program)
    """The shrunk network did not do what the labels predict.

    Attributes:
        what: the deviation in words.
        record: the op in the full network where it was seen; None where no op can be blamed.
        by_value: whether shapes agree and values do not.
    """

    def __init__(self, what: str, record: OpRecord | None, *, by_value: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.record = record
        self.by_value = by_value


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


class Lockstep(TorchDispatchMode):
    """Run ops beside the records of the full network and compare every shape.

    Args:
        records: the recorded ops.
        graph: the channels.
        keep: the mask by which the network was cut.

    Attributes:
        parted_by_size: whether the network has run other ops than the full one without asking for
            a value: because of its sizes.
    """

    def __init__(self, records: Sequence[OpRecord], graph: ChannelGraph, keep: Mask) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pairing = Pairing(records)
        self._graph = graph
        self._live = graph.live(keep)
        self._dynamic = self._asked = self.parted_by_size = False

    def run(self, function: Callable[[], T]) -> T:
        """Run the shrunk network.

        Raises:
            Deviation: when a shape differs or something fails. A failure between two ops (a
                ``reshape`` that checks its sizes, an ``assert``) is seen at the next op.
        """
        try:
            with self:
                return function()
        except Deviation:
            raise
        except Exception as error:
            raise self._failure(error, self._pairing.upcoming) from error

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        record = self._pairing.step(func._schema.name)
        self.parted_by_size |= self._pairing.parted and not self._asked
        try:
            out = func(*args, **(kwargs or {}))
        except Exception as error:
            raise self._failure(error, record) from error
        self._dynamic |= size_depends_on_values(func, args)
        self._asked |= asks_for_values(func, args)
        if record is not None:
            self._compare(record, [tuple(t.shape) for t in tensors_in(out)])
        return out

    def _failure(self, error: Exception, record: OpRecord | None) -> Deviation:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Deviation(f"the small network fails: {first}", record)

    def _compare(self, record: OpRecord, found: list[tuple[int, ...]]) -> None:
        for shape, full, labels in zip(found, record.shapes, record.outputs, strict=True):
            expected = tuple(
                n if dim is None else int(np.count_nonzero(self._live[dim]))
                for n, dim in zip(full, labels, strict=True)
            )
            if shape == expected:
                continue
            wrong = [
                dim
                for dim, a, b in zip_longest(labels, shape, expected)
                if a != b and dim is not None
            ]
            if not self._prunable(wrong if self._dynamic else record.dims):
                self._pairing.parted = True  # a size that depends on values, as in detection
                return
            what = f"a size is written into the code: {expected} != {shape}"
            raise Deviation(what, record)

    def _prunable(self, dims: list[DimLabels]) -> bool:
        """Whether channels that may go stand in any of these dimensions."""
        return any(d is not None and (self._graph.bits_of(d) >= 0).any() for d in dims)


def size_depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the size of an op's result depends on what is in its arguments."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    masks = [t for t in tensors_in(args) if t.dtype in (torch.bool, torch.uint8)]
    return func._schema.name != "aten::index" or bool(masks)


def asks_for_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a program may go another way by what is in the arguments of an op."""
    return torch.Tag.data_dependent_output in func.tags or size_depends_on_values(func, args)
