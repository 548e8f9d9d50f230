"""Run a network under the tracer, in evaluation and in training mode, and freeze what gets out."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

import lightning_slimga.graph.rules  # noqa: F401  (fills the registry)
from lightning_slimga.graph.forward_pass import ForwardPass
from lightning_slimga.graph.labels import LabelStore
from lightning_slimga.graph.tensors import find_slots, modules_of
from lightning_slimga.graph.trace import CostTerm, OpRecord, Trace
from lightning_slimga.graph.tracer import Tracer
from lightning_slimga.running.calls import Call
from lightning_slimga.running.model_state import preserved
from lightning_slimga.running.outputs import output_tensors
from lightning_slimga.running.parameter_writes import unwritten
from lightning_slimga.running.recalibration import has_statistics
from lightning_slimga.running.torch_settings import eager, exact_float32, no_autocast
from lightning_slimga.surgery.attention import opened
from lightning_slimga.surgery.unreached import keep_around_unreached


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
) -> Analysis:
    """Trace ``model``; it is left exactly as it was.

    Args:
        model: the network.
        calls: how it is run in evaluation mode.
        training_calls: how it is run in training mode.
        approximate: let channels under statistics across channels (LayerNorm) go as well.

    Returns:
        The analysis.
    """
    trace = Trace(LabelStore(), find_slots(model), modules_of(model), approximate=approximate)
    analysis = Analysis(trace)
    with running(model):
        evaluation = traced(model, calls, trace)
    analysis.costs, analysis.records["eval"] = evaluation.costs, evaluation.records
    try:
        with running(model, training=True):
            analysis.records["train"] = traced(model, training_calls, trace).records
    except Exception as error:  # e.g. targets missing: only evaluation is known to work
        analysis.training_error = f"{type(error).__name__}: {error}"
    keep_around_unreached(trace)
    return analysis


@contextmanager
def running(model: nn.Module, *, training: bool = False, as_it_is: bool = False) -> Iterator[None]:
    """The state in which a network is traced and proved; everything is restored on exit.

    No gradients, no rounded float32, no autocast (which casts weights to tensors that are no
    parameters), no fused transformer path and no compiled code (both hide ops). In training mode
    normalisation layers stay in evaluation mode: same channels, but a batch of one is enough.
    Torch's attention runs in a form in which its heads can be told apart, unless ``as_it_is``.

    Args:
        model: the network.
        training: run it in training mode.
        as_it_is: leave torch's attention as it is.
    """
    modules = list(model.modules())
    fast_path = torch.backends.mha.get_fastpath_enabled()
    form = nullcontext() if as_it_is else opened(modules)
    with (
        preserved(model),
        unwritten(model),
        torch.inference_mode(False),
        torch.no_grad(),
        exact_float32(),
        no_autocast(),
        eager(),
        form,
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        model.train(training)
        for module in modules:
            if has_statistics(module):
                module.training = False
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def traced(model: nn.Module, calls: Sequence[Call], trace: Trace) -> ForwardPass:
    """Run the network once under a tracer; ``trace`` learns from it.

    What a call returns is an output, and so is everything else that is still held when the calls
    are over, whatever holds it: an attribute of a module, a closure, a generator, an object of the
    user's. No list of containers would know them all.

    Args:
        model: the network, in the state of :func:`running`.
        calls: how it is run.
        trace: what is known so far; what reaches an output is frozen in it.

    Returns:
        The pass, with its ops and costs.
    """
    with Tracer(trace) as tracer:
        seen, outputs = tracer.seen, []
        for call in calls:
            counted = len(seen.costs)
            outputs.append(call.run(model))
            if not call.counted:
                del seen.costs[counted:]
    named: set[int] = set()
    for call, output in zip(calls, outputs, strict=True):
        where = f"reaches the output {call.module or 'forward'} -> "
        for path, tensor in output_tensors(output):
            named.add(id(tensor))
            trace.store.freeze_all(seen.lookup(tensor), f"{where}[{path}]")
    named |= {id(tensor) for tensor in _computed_by_hooks(trace.modules.values())}
    if any(id(tensor) not in named for tensor in seen.held()):
        gc.collect()  # objects that refer to each other are not gone before
    for tensor in seen.held():
        if id(tensor) not in named:
            trace.store.freeze_all(seen.lookup(tensor), "is still held when the call is over")
    return seen


def _computed_by_hooks(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Attributes that a hook makes anew of parameters before each call (``weight_norm``, pruning).

    They are no more than a name for what the parameters give, whoever reads them.
    """
    for module in modules:
        for hook in module._forward_pre_hooks.values():
            for key in ("name", "_tensor_name"):
                value = module.__dict__.get(getattr(hook, key, ""))
                if isinstance(value, Tensor):
                    yield value
