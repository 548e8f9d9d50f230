"""Run a network under the tracer, in evaluation and in training mode, and freeze what gets out."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import lightning_slimga.graph.rules  # noqa: F401  (fills the registry)
from lightning_slimga.graph.labels import LabelStore
from lightning_slimga.graph.replay import Replay
from lightning_slimga.graph.tensors import find_slots, modules_of
from lightning_slimga.graph.trace import CostTerm, OpRecord, Trace
from lightning_slimga.graph.tracer import Tracer
from lightning_slimga.running.calls import Call, run_all
from lightning_slimga.running.model_state import ModelState
from lightning_slimga.running.recalibration import has_statistics
from lightning_slimga.running.torch_settings import eager, exact_float32
from lightning_slimga.surgery.attention import opened

_MAX_DEPTH = 8
_PLAIN = {bool, int, float, str, type(None)}
_CONTAINERS = {dict, OrderedDict, set, list, tuple}
_TRAIN = {"train", "children", "named_children"}
"""What ``nn.Module.train`` goes by."""
_FLAG = {"training", "__setattr__"}
"""What it sets, and how."""


@dataclasses.dataclass
class Analysis:
    """Labels of a network, and the ops of each traced pass.

    Attributes:
        trace: the labels.
        costs: cost terms of the evaluation pass.
        records: ops of the evaluation and of the training pass.
        training_error: why the training pass could not run, if so.
    """

    trace: Trace
    costs: list[CostTerm] = dataclasses.field(default_factory=list)
    records: dict[str, list[OpRecord]] = dataclasses.field(default_factory=dict)
    training_error: str | None = None

    @property
    def trains_as_it_runs(self) -> bool:
        """Whether training runs the same ops as evaluation, line by line."""
        evaluation, training = self.records["eval"], self.records.get("train", [])
        return len(evaluation) == len(training) and all(map(OpRecord.is_like, evaluation, training))


def analyse(
    model: nn.Module,
    calls: Sequence[Call],
    training_calls: Sequence[Call],
    *,
    approximate: bool = False,
    state: ModelState | None = None,
) -> Analysis:
    """Trace ``model``; it is left exactly as it was.

    Args:
        model: the network.
        calls: how it is run in evaluation mode.
        training_calls: how it is run in training mode.
        approximate: let channels under statistics across channels (LayerNorm) go as well.
        state: the state of the network, if the caller has taken it.

    Returns:
        The analysis.
    """
    state = state or ModelState(model)
    trace = Trace(LabelStore(), find_slots(model), modules_of(model), approximate=approximate)
    analysis, replay = Analysis(trace), Replay()
    with running(model, state):
        evaluation = traced(model, calls, trace, replay)
    analysis.costs, analysis.records["eval"] = evaluation.costs, evaluation.records
    replay.second = True
    try:
        with running(model, state, training=True):
            training = traced(model, training_calls, trace, replay, evaluation.records)
        analysis.records["train"] = training.records
    except Exception as error:  # e.g. targets missing: only evaluation is known to work
        analysis.training_error = f"{type(error).__name__}: {error}"
    return analysis


@contextmanager
def running(
    model: nn.Module,
    state: ModelState | None = None,
    *,
    training: bool = False,
    as_it_is: bool = False,
) -> Iterator[None]:
    """The state in which a network is traced and proved; everything is restored on exit.

    No gradients, no rounded float32, no fused transformer path and no compiled code (both hide
    ops). In training mode normalisation layers stay in evaluation mode: same channels, but a batch
    of one is enough. Torch's attention runs in a form in which its heads can be told apart, unless
    ``as_it_is``.

    Args:
        model: the network.
        state: its state now, if the caller has taken it.
        training: run it in training mode.
        as_it_is: leave torch's attention as it is.
    """
    state = state or ModelState(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    modules = state.modules
    form = nullcontext() if as_it_is else opened(modules)
    with (
        state.kept(),
        torch.inference_mode(False),
        torch.no_grad(),
        exact_float32(),
        eager(),
        form,
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        _set_mode(model, modules, training)
        for module in modules:
            if has_statistics(module):
                module.training = False
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def _set_mode(model: nn.Module, modules: Sequence[nn.Module], training: bool) -> None:
    """``model.train(training)``, quickly where every module does that as ``nn.Module`` does."""
    instances = any(_TRAIN & module.__dict__.keys() for module in modules)
    if instances or not all(map(_trains_plainly, set(map(type, modules)))):
        model.train(training)
        return
    for module in modules:
        module.__dict__["training"] = training


def _trains_plainly(kind: type[nn.Module]) -> bool:
    names = _TRAIN | _FLAG
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in names)


def traced(
    model: nn.Module,
    calls: Sequence[Call],
    trace: Trace,
    replay: Replay | None = None,
    earlier: Sequence[OpRecord] = (),
) -> Tracer:
    """Run the network once under a tracer; ``trace`` learns from it.

    Args:
        model: the network, in the state of :func:`running`.
        calls: how it is run.
        trace: what is known so far; what reaches an output is frozen in it.
        replay: runs the ops; holds what another pass has computed, if this is the second.
        earlier: ops of another pass, whose labels serve where the same ops run.

    Returns:
        The tracer, with the ops and costs of this pass.
    """
    tracer = Tracer(trace, replay, earlier)
    before = {id(value) for value in _held_by(trace.modules.values())}
    with tracer:
        outputs = run_all(model, calls)
    for call, output in zip(calls, outputs, strict=True):
        where = f"reaches the output {call.module or 'forward'} -> "
        for path, tensor in output_tensors(output):
            trace.store.freeze_all(tracer.lookup(tensor), f"{where}[{path}]")
    for value in _held_by(trace.modules.values()):
        if id(value) not in before:
            trace.store.freeze_all(tracer.lookup(value), "is kept as an attribute of a module")
    return tracer


def _held_by(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Tensors in plain attributes: what a forward has put there, others may read."""
    for module in modules:
        for value in module.__dict__.values():
            if type(value) in _PLAIN or (type(value) in _CONTAINERS and not value):
                continue
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple, dict)):
                items = value.values() if isinstance(value, dict) else value
                yield from (item for item in items if isinstance(item, Tensor))


def output_tensors(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a model's output with its place: containers, dataclasses, plain objects."""
    if isinstance(value, Tensor):
        yield path or "0", value
        return
    if depth > _MAX_DEPTH or isinstance(value, (str, bytes, int, float, type, nn.Module)):
        return
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple, set)):
        items = list(enumerate(value))
    elif hasattr(value, "__dict__"):
        items = list(vars(value).items())
    else:
        return
    for key, item in items:
        yield from output_tensors(item, f"{path}.{key}" if path else str(key), depth + 1)
