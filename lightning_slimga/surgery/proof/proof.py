"""Prove and freeze: run the small model, and freeze what does not come out as predicted.

Sizes that are written into Python code are invisible to a trace. So every analysis is tried: a
random part of every layer is cut, and the shrunk network must run the same ops with exactly
the shapes that the labels predict, and return what the masked network returns. The first op that
deviates names the channels to freeze. When only values differ, both passes are watched op by op
to find where; what still cannot be explained is bisected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from lightning_slimga.graph.labels import DimLabels
from lightning_slimga.graph.layers import ChannelGraph, build_channel_graph
from lightning_slimga.graph.trace import OpRecord
from lightning_slimga.running.calls import Call
from lightning_slimga.running.model_state import stirred
from lightning_slimga.surgery.analysis import Analysis, running, traced
from lightning_slimga.surgery.masking import Mask, masked, plan_cut
from lightning_slimga.surgery.proof.lockstep import Deviation
from lightning_slimga.surgery.proof.numbers import Numbers
from lightning_slimga.surgery.proof.trial import Trial

_WIDE = 8


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
        self.calls = {"eval": calls, "train": training_calls}
        self.analysis = analysis
        self._numbers = Numbers(
            analysis, lambda graph, keep: self._trial(graph, keep).shrunk(), self._random_mask
        )
        self._generator = np.random.Generator(np.random.PCG64(0))
        self._masked_parted = False  # the masked network ran other ops than the traced one
        self._shrunk_parted = False  # the shrunk one did, because of its sizes
        self._retraces = 3

    def settle(self) -> ChannelGraph:
        """Freeze until the proof holds; every round freezes a layer or finds a number.

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
        deviation, why = self._tried(graph, keep)
        if why is None and self._shrunk_parted:  # a number in the code may exceed what is left
            keep = self._random_mask(graph, few=True)
            deviation, why = self._tried(graph, keep)
        if why is None:
            return not self._learns(graph, keep)
        if deviation is not None and deviation.record is not None:
            if not deviation.by_value and self._numbers.explain(graph, deviation.record):
                return False
            guilty = self._guilty(graph, keep, deviation.record, deviation)
            if guilty:
                self._freeze_line(graph, guilty, deviation.record, why)
                return False
        for layer in self._bisect(graph, keep, list(range(len(graph.layers)))):
            self._freeze_layer(graph, layer, f"{why} when it shrinks")
        return False

    def _tried(self, graph: ChannelGraph, keep: Mask) -> tuple[Deviation | None, str | None]:
        """Where and in which words a mask goes wrong; twice None if it does not."""
        try:
            return None, self.wrong(graph, keep)
        except Deviation as error:
            return error, error.what

    def _learns(self, graph: ChannelGraph, keep: Mask) -> bool:
        """Trace the masked network where it takes a way that no trace has seen (few times).

        A detector that finds nothing in the full network may find something in the masked one.
        """
        if not self._masked_parted or not self._retraces:
            return False
        self._retraces -= 1
        trace = self.analysis.trace
        with running(self.model), masked(self.model, graph, trace.slots, keep):
            records = traced(self.model, self.calls["eval"], trace).records
            self.analysis.records["eval"] = records
        return True

    def _random_mask(self, graph: ChannelGraph, *, few: bool = False) -> Mask:
        """Remove a part of every layer; most of a wide one, which is quicker, or ``few``."""
        keep = np.ones(graph.num_channels, dtype=bool)
        for layer in graph.layers:
            low, high = (1, 1) if few else _part_to_remove(layer.num_channels)
            count = int(self._generator.integers(low, high + 1))
            gone = self._generator.choice(layer.num_channels, count, replace=False)
            keep[layer.slice.start + gone] = False
        return keep

    def wrong(
        self, graph: ChannelGraph, keep: Mask, modes: Sequence[str] = ("eval", "train")
    ) -> str | None:
        """What is wrong with the values of the shrunk network, in words; None if nothing is.

        Args:
            graph: the channels.
            keep: the mask to try.
            modes: the modes in which the shrunk network runs, ``"eval"`` among them.

        Raises:
            Deviation: where it does not run in lockstep with the full network.
        """
        self._masked_parted = self._shrunk_parted = False
        exact = self._exact_part(graph, keep)
        if not np.array_equal(exact, keep):
            self._trial(graph, keep).shrunk(modes)
        trial = self._trial(graph, exact)
        try:
            return trial.wrong(modes)
        finally:
            self._masked_parted = trial.masked_parted
            self._shrunk_parted = trial.shrunk_parted

    def same_values(self, graph: ChannelGraph, keep: Mask) -> bool:
        """Whether the shrunk network returns what the masked one returns, by whatever ops.

        Torch runs other ops for some sizes: an einsum that sums over a single entry multiplies
        number by number. That is no reason to refuse a mask that the network itself has run with.
        """
        return self._trial(graph, self._exact_part(graph, keep)).same_values()

    def _exact_part(self, graph: ChannelGraph, keep: Mask) -> Mask:
        """A mask without the channels whose removal changes what remains, as the user knows."""
        approximations = self.analysis.trace.approximations
        approximate = _layers_in(graph, list(approximations.values())) if approximations else []
        exact = [i for i in range(len(graph.layers)) if i not in approximate]
        return _part(graph, keep, exact) if approximate else keep

    def _trial(self, graph: ChannelGraph, keep: Mask) -> Trial:
        plan = plan_cut(graph, self.analysis.trace.slots, keep)
        return Trial(self.model, self.calls, self.analysis, graph, keep, plan)

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


def _part_to_remove(channels: int) -> tuple[int, int]:
    """Fewest and most channels of a layer that a random mask removes; one always stays."""
    most = channels - 1
    if most < _WIDE:
        return max(1, most // 3), max(1, 2 * most // 3)
    few = int(channels**0.5)
    return max(3 * most // 4, channels - 2 * few), max(11 * most // 12, channels - few)


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
