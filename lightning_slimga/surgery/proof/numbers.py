"""Numbers: what modules keep about sizes under names that nobody knows, found by trying.

Code such as ``x.view(n, self.h, -1)`` reads a number of its module. Where the small network stops
at an op for the sake of its sizes, every number of the modules that run there is a suspect: if the
network gets past that op once the number counts channels of some dimension, and only then, it does
count them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import nn

from lightning_slimga.graph.labels import LabelArray
from lightning_slimga.graph.layers import ChannelGraph, build_channel_graph
from lightning_slimga.graph.trace import OpRecord, SizeAttribute
from lightning_slimga.surgery.analysis import Analysis
from lightning_slimga.surgery.masking import Mask
from lightning_slimga.surgery.proof.lockstep import Deviation

_MOST = 32  # suspects tried for one op; each takes up to three passes of the small network
_KNOWN = ("torch.", "lightning_slimga.")


class Numbers:
    """Look for numbers that explain where the small network stops.

    Args:
        analysis: the labels; what is found is added to its attributes.
        run: runs the network, cut by a mask, in all of its modes; raises a :class:`Deviation`.
        random_mask: makes a mask that cuts a part of every layer.
    """

    def __init__(
        self,
        analysis: Analysis,
        run: Callable[[ChannelGraph, Mask], object],
        random_mask: Callable[[ChannelGraph], Mask],
    ) -> None:
        self._analysis = analysis
        self._trace = analysis.trace
        self._run = run
        self._random_mask = random_mask

    def explain(self, graph: ChannelGraph, record: OpRecord) -> bool:
        """Whether a number was found with which the small network gets past an op.

        Args:
            graph: the channels.
            record: the op at which it stops.
        """
        known = self._trace.attributes
        for count, suspect in enumerate(self._suspects(graph, record)):
            if count == _MOST:
                break
            key = suspect.module, suspect.attribute
            known[key] = suspect
            if self._passes(suspect, record):
                self._spread(suspect, record)
                return True
            del known[key]
        return False

    def _spread(self, found: SizeAttribute, record: OpRecord) -> None:
        """The same code elsewhere reads the same number there: the proof goes on with all of them.

        Otherwise every block of a deep network would be stopped at, one after the other.
        """
        places = [i for i, dim in enumerate(record.dims) if dim is found.labels]
        inside = record.module.removeprefix(found.module).lstrip(".")
        records = (r for records in self._analysis.records.values() for r in records)
        for other in records if places and record.line[0] else ():
            if (other.line, other.name) != (record.line, record.name):
                continue
            dims, place = other.dims, places[0]
            module = other.module.removesuffix(inside).rstrip(".")
            labels = dims[place] if place < len(dims) else None
            numbers = dict(_numbers(self._trace.modules.get(module, nn.Identity())))
            if labels is not None and numbers.get(found.attribute) == len(labels):
                other_number = SizeAttribute(module, found.attribute, labels)
                self._trace.attributes.setdefault((module, found.attribute), other_number)

    def _suspects(self, graph: ChannelGraph, record: OpRecord) -> Iterator[SizeAttribute]:
        """Numbers of the running module and of those around it, with what they may count."""
        dims = list(self._dims(graph, record))
        parts = record.module.split(".") if record.module else []
        for depth in range(len(parts), -1, -1):
            name = ".".join(parts[:depth])
            for attribute, value in _numbers(self._trace.modules[name]):
                if (name, attribute) not in self._trace.attributes:
                    for labels in (dim for dim in dims if len(dim) == value):
                        yield SizeAttribute(name, attribute, labels)

    def _dims(self, graph: ChannelGraph, record: OpRecord) -> Iterator[LabelArray]:
        """Dimensions with channels that can go: of the op, then of others in and around its module.

        Of those with the same channels the first one.
        """
        around = record.module.rpartition(".")[0]
        records = (r for records in self._analysis.records.values() for r in records)
        near = [r for r in records if f"{r.module}.".startswith(f"{around}.") or not around]
        seen: set[bytes] = set()
        for dim in (dim for r in (record, *near) for dim in r.dims):
            bits = graph.bits_of(dim) if dim is not None else np.empty(0, dtype=np.int64)
            if dim is not None and (bits >= 0).any() and bits.tobytes() not in seen:
                seen.add(bits.tobytes())
                yield dim

    def _passes(self, suspect: SizeAttribute, record: OpRecord) -> bool:
        """Whether the network gets past an op whatever is cut: all, what is counted, the rest."""
        graph = build_channel_graph(self._trace, self._analysis.costs)
        keep = self._random_mask(graph)
        counted = np.zeros_like(keep)
        bits = graph.bits_of(suspect.labels)
        counted[bits[bits >= 0]] = True
        masks = (keep, keep | ~counted, keep | counted)
        return all(self._gets_past(graph, mask, record) for mask in masks)

    def _gets_past(self, graph: ChannelGraph, keep: Mask, record: OpRecord) -> bool:
        if keep.all():
            return True
        try:
            self._run(graph, keep)
        except Deviation as deviation:
            stopped, wanted = self._place(deviation.record), self._place(record)
            return stopped is not None and wanted is not None and stopped > wanted
        return True

    def _place(self, record: OpRecord | None) -> tuple[int, int] | None:
        """Where an op stands: number of the pass, position in it."""
        for number, records in enumerate(self._analysis.records.values()):
            for position, other in enumerate(records):
                if other is record:
                    return number, position
        return None


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Whole numbers above 1 that a module keeps, alone or in a tuple or list.

    Those of torch's own modules are known to the rules.
    """
    if type(module).__module__.startswith(_KNOWN):
        return
    for name, value in module.__dict__.items():
        if type(value) is int and value > 1:
            yield name, value
        elif type(value) in (tuple, list) and all(type(entry) is int for entry in value):
            yield from ((f"{name}.{i}", n) for i, n in enumerate(value) if n > 1)
