"""Prove and freeze: run the small model, and freeze what does not come out as predicted.

Sizes that are written into Python code are invisible to a trace. So every analysis is tried: a
random part of every layer is cut, and the shrunk network must run the same ops with exactly
the shapes that the labels predict, and return what the masked network returns. The first op that
deviates names the channels to freeze. When only values differ, both passes are watched op by op
to find where; what still cannot be explained is bisected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from lightning_slimga.calls import Call, run_all
from lightning_slimga.comparison import Watch, compare_outputs, first_difference
from lightning_slimga.graph.analysis import Analysis, running, traced
from lightning_slimga.graph.channel_graph import ChannelGraph, build_channel_graph
from lightning_slimga.graph.collection import rare_collection
from lightning_slimga.graph.labels import DimLabels
from lightning_slimga.graph.replay import Replay
from lightning_slimga.graph.trace import OpRecord
from lightning_slimga.lockstep import Deviation, Lockstep
from lightning_slimga.model_state import stirred
from lightning_slimga.muting import Muting
from lightning_slimga.shrinking import Mask, masked, plan_cut, swapped_in

_WIDE = 64


class Proof:
    """Try an analysis on the network itself until nothing deviates.

    Args:
        model: the network; left as it was.
        calls: how it is run in evaluation mode.
        training_calls: how it is run in training mode.
        analysis: its labels; what fails is frozen in them.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[Call],
        training_calls: Sequence[Call],
        analysis: Analysis,
    ) -> None:
        self.model = model
        self.calls = calls
        self.training_calls = training_calls
        self.analysis = analysis
        self._generator = np.random.Generator(np.random.PCG64(0))
        self._strayed = False  # the masked network ran other ops than the traced one
        self._retraces = 3

    @rare_collection()
    def settle(self) -> ChannelGraph:
        """Freeze until the proof holds; every round freezes at least one layer.

        Returns:
            The graph of what is left.
        """
        with stirred(self.model):
            while True:
                graph = build_channel_graph(self.analysis.trace, self.analysis.costs)
                if not graph.layers or self._holds(graph):
                    return graph

    def _holds(self, graph: ChannelGraph) -> bool:
        """One round: whether the proof holds; if not, what it has found is frozen."""
        keep = self._random_mask(graph)
        deviation: Deviation | None = None
        try:
            why = self.wrong(graph, keep)
        except Deviation as error:
            deviation, why = error, error.what
        if why is None:
            return not self._learns(graph, keep)
        if deviation is not None and deviation.record is not None:
            guilty = self._guilty(graph, keep, deviation.record, deviation)
            if guilty:
                self._freeze_line(graph, guilty, deviation.record, why)
                return False
        for layer in self._bisect(graph, keep, list(range(len(graph.layers)))):
            self._freeze_layer(graph, layer, f"{why} when it shrinks")
        return False

    def _learns(self, graph: ChannelGraph, keep: Mask) -> bool:
        """Trace the masked network where it takes a way that no trace has seen (few times).

        A detector that finds nothing in the full network may find something in the masked one.
        """
        if not self._strayed or not self._retraces:
            return False
        self._retraces -= 1
        trace = self.analysis.trace
        with running(self.model), masked(self.model, graph, trace.slots, keep):
            self.analysis.records["eval"] = traced(self.model, self.calls, trace).records
        return True

    def _random_mask(self, graph: ChannelGraph) -> Mask:
        """Remove a part of every layer; most of a wide one, which is quicker."""
        keep = np.ones(graph.num_channels, dtype=bool)
        for layer in graph.layers:
            most = layer.num_channels - 1
            thirds = (1, 2) if most < _WIDE else (2.25, 2.75)
            low, high = (max(1, int(share * most / 3)) for share in thirds)
            count = int(self._generator.integers(low, high + 1))
            gone = self._generator.choice(layer.num_channels, count, replace=False)
            keep[layer.slice.start + gone] = False
        return keep

    @rare_collection()
    def wrong(self, graph: ChannelGraph, keep: Mask) -> str | None:
        """What is wrong with the values of the shrunk network, in words; None if nothing is.

        In training mode it must only run: dropout draws other numbers for other shapes.

        Raises:
            Deviation: where it does not run in lockstep with the full network.
        """
        trace = self.analysis.trace
        self._strayed = False
        found = self._shrunk(graph, keep)
        approximate = _layers_in(graph, list(trace.approximations.values()))
        if approximate:  # their values differ, as the user knows: only the others are compared
            exact = [i for i in range(len(graph.layers)) if i not in approximate]
            keep = _part(graph, keep, exact)
            found = self._shrunk(graph, keep)
        muted = self._muted(graph, keep)
        if muted is not None and compare_outputs(muted, found) is None:
            return None
        try:
            wanted = self._masked(graph, keep)
        except Exception as error:  # e.g. the network checks its own values
            return f"the masked network fails ({error})"
        what = compare_outputs(wanted, found)
        return None if what is None else self._explained(graph, keep, what)

    def reference(self, graph: ChannelGraph, keep: Mask) -> list[Any] | None:
        """What the network returns masked; None where that says little about the shrunk one."""
        try:
            if self.analysis.trace.approximations:
                return None
            muted = self._muted(graph, keep)
            return self._masked(graph, keep) if muted is None else muted
        except Exception:  # :meth:`wrong` says what is the matter
            return None

    @rare_collection()
    def agrees(self, graph: ChannelGraph, keep: Mask, reference: list[Any] | None) -> bool:
        """Whether the network, which has been cut, does beyond doubt what it did masked.

        What training alone writes into code has been seen by :meth:`settle`, which cuts every
        layer; so it runs again only where it does other things than evaluation.
        """
        modes = ("eval",) if self.analysis.trains_as_it_runs else ("eval", "train")
        try:
            found = self._in_lockstep(graph, keep, modes)
        except Deviation:
            return False
        return reference is not None and compare_outputs(reference, found) is None

    def _muted(self, graph: ChannelGraph, keep: Mask) -> list[Any] | None:
        """What the network returns masked, the quick way; None where that is not to be had."""
        muting = Muting(self.analysis.records["eval"], graph, self.analysis.trace, keep)
        try:
            with running(self.model), muting:
                outputs = run_all(self.model, self.calls)
        except Exception:  # the masked network itself will say what is the matter
            return None
        return outputs if muting.faithful else None

    def _masked(self, graph: ChannelGraph, keep: Mask) -> list[Any]:
        """What the network returns masked; its attention runs torch's own code, not ours."""
        as_it_is = running(self.model, as_it_is=True)
        with as_it_is, masked(self.model, graph, self.analysis.trace.slots, keep):
            return run_all(self.model, self.calls)

    def _explained(self, graph: ChannelGraph, keep: Mask, what: str) -> str | None:
        """Find the op at which values part; None where it decides by values that are the same.

        The order of equal scores, say, may change with the last digit: nobody is to blame for it.

        Raises:
            Deviation: naming the op.
        """
        slots, records = self.analysis.trace.slots, self.analysis.records["eval"]
        wanted = Watch(records, graph, keep, full=True)
        found = Watch(records, graph, keep, full=False)
        with running(self.model), masked(self.model, graph, slots, keep), wanted:
            run_all(self.model, self.calls)
        with swapped_in(plan_cut(graph, slots, keep), self.model), running(self.model), found:
            run_all(self.model, self.calls)
        self._strayed = wanted.parted
        difference = first_difference(records, wanted, found)
        if isinstance(difference, OpRecord):
            raise Deviation(what, difference, by_value=True)
        return what if difference is None else None

    def _shrunk(self, graph: ChannelGraph, keep: Mask) -> list[Any]:
        """What the shrunk network returns in evaluation mode; it must run in training mode, too."""
        with swapped_in(plan_cut(graph, self.analysis.trace.slots, keep), self.model):
            return self._in_lockstep(graph, keep)

    def _in_lockstep(
        self, graph: ChannelGraph, keep: Mask, modes: Sequence[str] = ("eval", "train")
    ) -> list[Any]:
        """Run the network, which is shrunk now, beside the records of the full one.

        Returns:
            What it returns in evaluation mode.
        """
        replay, outputs = Replay() if "train" in modes else Replay(room=0), {}
        for mode in modes:
            records = self.analysis.records.get(mode)
            if records is not None:
                calls = self.calls if mode == "eval" else self.training_calls
                lockstep = Lockstep(records, graph, keep, replay)
                with running(self.model, training=mode == "train"):
                    outputs[mode] = lockstep.run(partial(run_all, self.model, calls))
            replay.second = True
        return outputs["eval"]

    def _guilty(
        self, graph: ChannelGraph, keep: Mask, record: OpRecord, deviation: Deviation
    ) -> list[int]:
        """The layers at a deviating op that go wrong alone; all of them where one had to."""
        suspects = _layers_in(graph, record.dims)
        alone = [i for i in suspects if self._fails(graph, _part(graph, keep, [i]))]
        return alone or ([] if deviation.by_value else suspects)

    def _freeze_line(
        self, graph: ChannelGraph, guilty: list[int], record: OpRecord, why: str
    ) -> None:
        """Freeze the guilty, and what stands in their place where the same code runs elsewhere."""
        why = f"{why} ({record.name.replace('::', '.')} in {record.module or 'forward'})"
        for layer in guilty:
            self._freeze_layer(graph, layer, why)
        places = [
            i for i, dim in enumerate(record.dims) if set(_layers_in(graph, [dim])) & {*guilty}
        ]
        for other in (r for records in self.analysis.records.values() for r in records):
            if other.line == record.line and other.name == record.name:
                dims = other.dims
                for i in places:
                    if i < len(dims):
                        self.analysis.trace.store.freeze(dims[i], f"{why}, seen by the proof")

    def _bisect(self, graph: ChannelGraph, keep: Mask, layers: list[int]) -> list[int]:
        """Layers whose removal goes wrong; all of ``layers`` if no part of them does alone."""
        if len(layers) == 1:
            return layers
        half = len(layers) // 2
        guilty: list[int] = []
        for part in (layers[:half], layers[half:]):
            if self._fails(graph, _part(graph, keep, part)):
                guilty += self._bisect(graph, keep, part)
        return guilty or layers

    def _fails(self, graph: ChannelGraph, keep: Mask) -> bool:
        try:
            return self.wrong(graph, keep) is not None
        except Deviation:
            return True

    def _freeze_layer(self, graph: ChannelGraph, layer: int, why: str) -> None:
        bits = graph.layers[layer].slice
        inside = (graph.bit_of_label >= bits.start) & (graph.bit_of_label < bits.stop)
        self.analysis.trace.store.freeze(np.flatnonzero(inside), f"{why}, seen by the proof")


def _part(graph: ChannelGraph, keep: Mask, layers: list[int]) -> Mask:
    """A mask that removes only what ``keep`` removes of these layers."""
    partial = np.ones_like(keep)
    for layer in layers:
        bits = graph.layers[layer].slice
        partial[bits] = keep[bits]
    return partial


def _layers_in(graph: ChannelGraph, dims: Sequence[DimLabels]) -> list[int]:
    """Numbers of the prunable layers that stand in some dimensions."""
    starts = np.array([layer.slice.start for layer in graph.layers], dtype=np.int64)
    found: set[int] = set()
    for labels in dims:
        if labels is not None:
            bits = graph.bits_of(labels)
            found.update(np.searchsorted(starts, bits[bits >= 0], side="right").tolist())
    return sorted(number - 1 for number in found)
