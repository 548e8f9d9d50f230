"""Which modules a user's step calls, and with what: recorded while the step itself runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.utils._pytree import tree_map
from torchmetrics import Metric

from lightning_slimga.callbacks.internals.batches import (
    FewSamples,
    Triple,
    private_copy,
    to_device,
    validation_data,
)
from lightning_slimga.callbacks.internals.quiet import in_stage, muted
from lightning_slimga.running.calls import Call
from lightning_slimga.running.recalibration import moved_statistics, moving_statistics
from lightning_slimga.running.swapped import swapped

_STAGES = {"training_step": "train", "validation_step": "validate", "predict_step": "predict"}


def capture_calls(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    batches: Sequence[Any],
    *,
    training: bool,
    moved: set[str] | None = None,
    few: FewSamples | None = None,
) -> list[Call]:
    """Record the outermost module calls that the user's step makes on each batch.

    The step runs without gradients, without autocast and without a trace (see
    :func:`~lightning_slimga.callbacks.internals.quiet.muted`; what it logs is dropped too).
    A step that calls the LightningModule itself gives one call per batch; one that calls children
    gives a call for each of them. Calls inside a recorded call are not recorded, nor are those of
    torchmetrics objects and of modules without parameters, such as losses.

    With `training` the step is `training_step`, in the train/eval modes that the modules have now;
    otherwise it is `validation_step` in eval mode, on as many batches of each validation loader.
    Where a step raises, a warning names the error and the next is tried: with `training`
    `validation_step` on the training batches, then on validation batches; otherwise the other way
    round. Under manual optimization `training_step` would step the optimizers and is left out.

    Args:
        trainer: a Trainer inside `fit`, training.
        pl_module: the LightningModule of that fit.
        batches: training batches on the device.
        training: record what training does, rather than what validation does.
        moved: gets the names of the layers whose running statistics the step changes; where
            `training_step` cannot be run, of those that are in training mode now.
        few: of the validation batches take a part, and count. No warnings then: those of the whole
            batches have been given.

    Returns:
        The calls, in order; their tensors are detached copies.
    """
    given: dict[str, Callable[[], Sequence[Triple]]] = {
        "training": lambda: [(batch, i, 0) for i, batch in enumerate(batches)],
        "validation": lambda: _validation_batches(trainer, len(batches), few),
    }
    attempts = _attempts(trainer, pl_module, training)
    for step, data in attempts[:-1]:
        try:
            return _record(trainer, pl_module, step, given[data](), moved, evaluating=not training)
        except Exception as error:  # whatever user code raises on what it does not expect
            if few is not None:
                continue
            rank_zero_warn(
                f"`{step}` cannot be run without gradients on a {data} batch"
                f" ({type(error).__name__}: {error}), so the network is analysed with what"
                " `validation_step` calls on others."
            )
    step, data = attempts[-1]
    return _record(trainer, pl_module, step, given[data](), moved, evaluating=not training)


def capture_predictions(
    trainer: pl.Trainer, pl_module: pl.LightningModule, count: int, few: FewSamples | None = None
) -> list[Call]:
    """Record the calls that a `predict_step` of the user's makes on validation batches.

    The data that it is made for are not there during a fit; where it cannot be run on others,
    nothing is recorded.

    Args:
        trainer: a Trainer inside `fit`.
        pl_module: the LightningModule of that fit.
        count: batches of each validation loader.
        few: take a part of each batch.

    Returns:
        The calls, in order; none where `predict_step` is Lightning's own.
    """
    owner = next(kind for kind in type(pl_module).__mro__ if "predict_step" in vars(kind))
    default = owner.__module__.startswith(("lightning.", "pytorch_lightning."))
    if default or not trainer.enable_validation:
        return []
    try:
        batches = _validation_batches(trainer, count, few)
        return _record(trainer, pl_module, "predict_step", batches, None, evaluating=True)
    except Exception:  # whatever user code raises on what it does not expect
        return []


def _attempts(
    trainer: pl.Trainer, pl_module: pl.LightningModule, training: bool
) -> list[tuple[str, str]]:
    """Steps, each with the data it is tried on, the best first."""
    attempts = [("validation_step", "training"), ("validation_step", "validation")]
    if not training:
        attempts.reverse()
    elif pl_module.automatic_optimization:
        attempts.insert(0, ("training_step", "training"))
    if not trainer.enable_validation:
        return [attempt for attempt in attempts if attempt[1] == "training"][:1]
    return attempts


def _record(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    step: str,
    triples: Sequence[Triple],
    moved: set[str] | None,
    *,
    evaluating: bool,
) -> list[Call]:
    calls: list[Call] = []
    in_training_mode = moving_statistics(pl_module)
    device = trainer.strategy.root_device.type
    with ExitStack() as stack:
        stack.enter_context(muted(trainer))
        stack.enter_context(in_stage(trainer, _STAGES[step]))
        stack.enter_context(swapped(pl_module, log=_drop, log_dict=_drop))
        stack.enter_context(torch.no_grad())
        stack.enter_context(trainer.precision_plugin.forward_context())
        if torch.is_autocast_enabled(device):
            # Replayed outside of autocast, arguments of its lower precision would be refused.
            stack.enter_context(torch.autocast(device, enabled=False))
        if evaluating:
            pl_module.on_validation_model_eval()
        stack.enter_context(_recorded(pl_module, calls))
        changed = stack.enter_context(moved_statistics(pl_module))
        for triple in triples:
            _run_step(trainer, pl_module, step, triple)
    if moved is not None:
        moved |= changed if step == "training_step" else in_training_mode
    return calls


def _run_step(
    trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, triple: Triple
) -> None:
    """Call a step with those of its optional arguments that it declares, as the loops do."""
    batch, batch_idx, loader_idx = triple
    batch = private_copy(batch)
    loop = trainer.fit_loop.epoch_loop
    step = getattr(pl_module, name)
    if "dataloader_iter" in signature(step).parameters:
        arguments: Any = [iter([(batch, batch_idx, loader_idx)])]
    elif name == "training_step":
        arguments = loop._build_kwargs(OrderedDict(), batch, batch_idx).values()
    else:
        user = loop.val_loop._combined_loader
        several = user is not None and len(user.flattened) > 1 and user._mode == "sequential"
        hook = loop.val_loop._build_kwargs(batch, batch_idx, loader_idx if several else None)
        arguments = loop.val_loop._build_step_args_from_hook_kwargs(hook, name)
    step(*arguments)


def _validation_batches(trainer: pl.Trainer, count: int, few: FewSamples | None) -> list[Triple]:
    load, _ = validation_data(trainer, count, few=few)
    with muted(trainer), in_stage(trainer, "validate"):
        return [(to_device(trainer, batch, k), i, k) for batch, i, k in load()]


@contextmanager
def _recorded(pl_module: nn.Module, calls: list[Call]) -> Iterator[None]:
    """Append each outermost call of a module with parameters to `calls`."""
    running: list[str] = []
    reached: set[str] = set()

    def before(name: str, args: Any, kwargs: Any) -> None:
        if not running:
            reached.clear()
            calls.append(Call(name, _detached(args), _detached(kwargs)))
        running.append(name)
        reached.add(name)

    def after(*_: Any) -> None:
        running.pop()
        if not running:
            calls[-1] = replace(calls[-1], reached=frozenset(reached))

    handles = []
    try:
        for name, module in _recordable(pl_module):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: before(name, args, kwargs),
                    prepend=True,  # the arguments as given, before the user's own hooks
                    with_kwargs=True,
                )
            )
            handles.append(module.register_forward_hook(after, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recordable(pl_module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    metrics = {child for m in pl_module.modules() if isinstance(m, Metric) for child in m.modules()}
    for name, module in pl_module.named_modules():
        if module in metrics or isinstance(module, OptimizedModule):
            continue  # a compiled module is recorded as the module that it was made of
        if next(module.parameters(), None) is not None:
            yield name, module


def _detached(value: Any) -> Any:
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value)


def _drop(*args: Any, **kwargs: Any) -> None:
    """Stands in for `self.log`."""
