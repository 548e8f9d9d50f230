"""Prove and freeze: run the small model, and freeze what does not come out as predicted.

Sizes that are written into Python code are invisible to a trace. So every analysis is tried: a
random part of every layer is cut, and the shrunk network must run the same ops with exactly
the shapes that the labels predict, and return what the masked network returns. The first op that
deviates names the channels to freeze; when only values differ, the layers are bisected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slimga.calls import Call
from lightning_slimga.graph.analysis import Analysis, output_tensors, running
from lightning_slimga.graph.channel_graph import ChannelGraph, build_channel_graph
from lightning_slimga.graph.labels import LabelArray
from lightning_slimga.graph.trace import OpRecord, tensors_in
from lightning_slimga.shrinking import Mask, masked, plan_cut, swapped_in

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}


class Deviation(Exception):  # noqa: N818  (nothing is wrong with the program)
    """An op of the shrunk network did not do what the labels predict.

    Attributes:
        record: the op in the full network.
        what: the deviation in words.
    """

    def __init__(self, record: OpRecord, what: str) -> None:
        super().__init__(what)
        self.record = record
        self.what = what


class Lockstep(TorchDispatchMode):
    """Run ops beside the records of the full network and compare every shape.

    Args:
        records: the recorded ops.
        graph: the channels.
        keep: the mask that was cut.
    """

    def __init__(self, records: Sequence[OpRecord], graph: ChannelGraph, keep: Mask) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._records = records
        self._graph = graph
        self._keep = keep
        self._next = 0
        self._together = True
        self._removed: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        record = self._step(func._schema.name)
        try:
            out = func(*args, **(kwargs or {}))
        except Exception as error:
            if record is None:
                raise
            raise Deviation(record, f"the small network fails: {error}") from error
        if record is not None:
            self._compare(record, [tuple(t.shape) for t in tensors_in(out)])
        return out

    def _step(self, name: str) -> OpRecord | None:
        """The record of this op; None once the control flow depends on values."""
        if self._together and self._next < len(self._records):
            record = self._records[self._next]
            self._next += 1
            self._together = record.name == name
            if self._together:
                return record
        return None

    def _compare(self, record: OpRecord, found: list[tuple[int, ...]]) -> None:
        labelled = any(
            d is not None for labels in (*record.inputs, *record.outputs) for d in labels
        )
        for shape, full, labels in zip(found, record.shapes, record.outputs, strict=True):
            expected = tuple(
                n if dim is None else n - self._gone(dim)
                for n, dim in zip(full, labels, strict=True)
            )
            if shape != expected:
                if not labelled:  # sizes that depend on values, as in detection
                    self._together = False
                    return
                raise Deviation(record, f"a size is written into the code: {expected} != {shape}")

    def _gone(self, labels: LabelArray) -> int:
        key = id(labels)
        if key not in self._removed:
            bits = self._graph.bits_of(labels)
            self._removed[key] = int((~self._keep[bits[bits >= 0]]).sum())
        return self._removed[key]


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

    def settle(self) -> ChannelGraph:
        """Freeze until the proof holds.

        Returns:
            The graph of what is left.
        """
        while True:
            graph = build_channel_graph(self.analysis.trace, self.analysis.costs)
            if not graph.layers:
                return graph
            keep = self._random_mask(graph)
            try:
                wrong = self._wrong(graph, keep)
            except Deviation as deviation:
                self._freeze_line(deviation)
                continue
            if wrong is None:
                return graph
            guilty = self._bisect(graph, keep, list(range(len(graph.layers))), wrong)
            for layer in guilty:
                self._freeze_layer(graph, layer, wrong)

    def _random_mask(self, graph: ChannelGraph) -> Mask:
        """Remove between one and all but one channel of every layer."""
        keep = np.ones(graph.num_channels, dtype=bool)
        for layer in graph.layers:
            most = layer.num_channels - 1
            count = int(self._generator.integers(max(1, most // 3), max(1, 2 * most // 3) + 1))
            gone = self._generator.choice(layer.num_channels, count, replace=False)
            keep[layer.slice.start + gone] = False
        return keep

    def _wrong(self, graph: ChannelGraph, keep: Mask) -> str | None:
        """What is wrong with the shrunk network, in words; None if nothing is.

        In evaluation mode its values must be right. In training mode it must run: dropout draws
        other numbers for other shapes.
        """
        slots = self.analysis.trace.slots
        with _stirred(self.model):
            try:
                with running(self.model), masked(self.model, graph, slots, keep):
                    wanted = [call.run(self.model) for call in self.calls]
            except Exception as error:  # e.g. the network checks its own values
                return f"the masked network fails ({error})"
            wrong = compare_outputs(wanted, self._run_shrunk(graph, keep, "eval"))
            if wrong is None:
                trained = self._run_shrunk(graph, keep, "train")
                wrong = compare_outputs([], [x for x in trained if isinstance(x, str)])
        return wrong

    def _run_shrunk(self, graph: ChannelGraph, keep: Mask, mode: str) -> list[Any]:
        records = self.analysis.records.get(mode)
        if records is None:
            return []
        plan = plan_cut(graph, self.analysis.trace.slots, keep)
        with running(self.model, training=mode == "train"), swapped_in(plan, self.model):
            try:
                calls = self.training_calls if mode == "train" else self.calls
                with Lockstep(records, graph, keep):
                    return [call.run(self.model) for call in calls]
            except Deviation:
                raise
            except Exception as error:  # after the control flow parted: no op to blame
                return [f"{type(error).__name__}: {error}"]

    def _freeze_line(self, deviation: Deviation) -> None:
        """Freeze what meets at the deviating op, and at the same place of the code elsewhere."""
        store, guilty = self.analysis.trace.store, deviation.record
        why = f"{deviation.what} ({guilty.name.replace('::', '.')} in {guilty.module or 'forward'})"
        before = store.frozen_reasons()
        for records in self.analysis.records.values():
            for record in records:
                if record is guilty or (record.line == guilty.line and record.name == guilty.name):
                    for labels in (*record.inputs, *record.outputs):
                        store.freeze_all(labels, f"{why}, seen by the proof")
        if np.array_equal(before, store.frozen_reasons()):
            for records in self.analysis.records.values():
                for record in records:
                    for labels in record.inputs:
                        store.freeze_all(labels, f"{why}, seen by the proof")

    def _bisect(self, graph: ChannelGraph, keep: Mask, layers: list[int], why: str) -> list[int]:
        """Layers whose removal changes values; all of ``layers`` if no part of them does alone."""
        if len(layers) == 1:
            return layers
        half = len(layers) // 2
        guilty: list[int] = []
        for part in (layers[:half], layers[half:]):
            if self._fails(graph, keep, part):
                guilty += self._bisect(graph, keep, part, why)
        return guilty or layers

    def _fails(self, graph: ChannelGraph, keep: Mask, layers: list[int]) -> bool:
        partial = np.ones_like(keep)
        for layer in layers:
            bits = graph.layers[layer].slice
            partial[bits] = keep[bits]
        try:
            return self._wrong(graph, partial) is not None
        except Deviation:
            return True

    def _freeze_layer(self, graph: ChannelGraph, layer: int, why: str) -> None:
        bits = graph.layers[layer].slice
        inside = (graph.bit_of_label >= bits.start) & (graph.bit_of_label < bits.stop)
        self.analysis.trace.store.freeze(
            np.flatnonzero(inside), f"{why} when it shrinks, seen by the proof"
        )


def compare_outputs(wanted: Any, found: Any) -> str | None:
    """Compare the outputs of the masked and the shrunk network.

    Returns:
        None where they agree within the tolerance of their dtype, else what differs, in words.
    """
    if found and isinstance(found[0], str):
        return f"the small network fails ({found[0]})"
    pairs_wanted, pairs_found = list(output_tensors(wanted)), list(output_tensors(found))
    if len(pairs_wanted) != len(pairs_found):
        return "the output has another number of tensors"
    for (path, a), (_, b) in zip(pairs_wanted, pairs_found, strict=True):
        if a.shape != b.shape:
            return f"the output [{path}] has another shape"
        if a.is_floating_point() and a.numel():
            error = _relative_error(a, b)
            if error > _TOLERANCE.get(a.dtype, 1e-4):
                return f"the output [{path}] differs by {error:.1e}"
    return None


def _relative_error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return float("inf")
    scale = a[finite].abs().max() if finite.any() else torch.tensor(0.0)
    difference = (a - b)[finite].abs().max() if finite.any() else torch.tensor(0.0)
    return float(difference / scale.clamp_min(1e-12))


@contextmanager
def _stirred(model: nn.Module) -> Iterator[None]:
    """Give parameters that are constant (zero-initialised γ, layer scales) random values.

    A branch that is multiplied by zero would hide every mistake in it.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter in model.parameters():
            data = parameter.data
            if data.numel() and data.is_floating_point() and data.amin() == data.amax():
                saved.append((data, data.clone()))
                noise = torch.rand(data.shape, generator=generator) - 0.5
                data.add_(noise.to(data))
        yield
    finally:
        for data, content in saved:
            data.copy_(content)
