"""Lockstep: the shrunk network must run the same ops as the full one, with predicted shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slimga.graph.labels import DimLabels
from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.graph.replay import Replay
from lightning_slimga.graph.trace import OpRecord, tensors_in
from lightning_slimga.surgery.proof.pairing import Pairing, asks_for_values, size_depends_on_values
from lightning_slimga.surgery.proof.survivors import Survivors

T = TypeVar("T")


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


class Lockstep(TorchDispatchMode):
    """Run ops beside the records of the full network and compare every shape.

    Args:
        records: the recorded ops.
        graph: the channels.
        survivors: what the mask leaves that was cut.
        replay: runs the ops; holds what another pass has computed, if this is the second.

    Attributes:
        astray: whether the network has run other ops than the full one without asking for a value:
            because of its sizes.
    """

    def __init__(
        self,
        records: Sequence[OpRecord],
        graph: ChannelGraph,
        survivors: Survivors,
        replay: Replay,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pairing = Pairing(records)
        self._replay = replay
        self._graph = graph
        self._survivors = survivors
        self._dynamic = self._asked = self.astray = False

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
        self.astray |= self._pairing.parted and not self._asked
        try:
            place = None if record is None else record.place
            out = self._replay.run(place, func, args, kwargs or {})
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
                n if dim is None else n - self._survivors.removed(dim)
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
