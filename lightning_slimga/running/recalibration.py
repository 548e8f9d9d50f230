"""Batch-norm statistics for a network that has just lost channels.

Without it a candidate's accuracy says little about the network (Li et al., "EagleEye: fast
sub-net evaluation for efficient neural network pruning", ECCV 2020: Pearson correlation with the
accuracy after fine-tuning 0.8 with, -0.05 without).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_slimga.running.calls import Call
from lightning_slimga.running.torch_settings import eager

Average = Callable[[Sequence[Tensor], Sequence[int]], None]
"""Replaces tensors, in place, by their mean over all processes, given their weights in this one."""


def recalibrate(
    model: nn.Module,
    calls: Sequence[Call],
    average: Average | None = None,
    *,
    only: Collection[str] | None = None,
) -> None:
    """Replace running statistics by the cumulative average over some training batches.

    Only the layers whose statistics are taken are in training mode meanwhile, so dropout is off.
    Training flags and momenta are as before afterwards; no gradients are recorded. Layers that no
    call reaches keep their statistics.

    Args:
        model: the network; its running statistics are overwritten.
        calls: forward calls on training batches; without any, nothing happens.
        average: averages the statistics over the processes that train the network together, each
            of which makes the calls for its own batches.
        only: names of the layers whose statistics are taken, as :func:`moved_statistics` and
            :func:`moving_statistics` find them; None takes those of all. The others keep theirs,
            and compute with them.
    """
    layers = _averaged(model)
    taken = [layer for name, layer in layers.items() if only is None or name in only]
    if not layers or not (calls or average):
        return
    with _averaging(model, taken) as times, torch.no_grad(), eager():
        for call in calls:
            call.run(model)
    if average is not None:  # of all layers: other processes may take those of others
        statistics = [s for x in layers.values() for s in (x.running_mean, x.running_var)]
        average(statistics, [times.get(x, 0) for x in layers.values() for _ in ("mean", "var")])


@contextmanager
def moved_statistics(model: nn.Module) -> Iterator[set[str]]:
    """Find the layers whose running statistics change inside the block.

    Who keeps a backbone or a teacher in evaluation mode, wherever that is done, wants them to stay.

    Yields:
        A set that holds the names of these layers after the block.
    """
    layers = _averaged(model)
    before = {n: (x.running_mean.clone(), x.running_var.clone()) for n, x in layers.items()}
    moved: set[str] = set()
    yield moved
    for name, (mean, variance) in before.items():
        now = layers[name]
        if not (torch.equal(now.running_mean, mean) and torch.equal(now.running_var, variance)):
            moved.add(name)


def moving_statistics(model: nn.Module) -> set[str]:
    """Names of the layers whose running statistics would change in the modes they have now."""
    return {name for name, x in _averaged(model).items() if x.training and x.momentum != 0}


@contextmanager
def _averaging(model: nn.Module, layers: Sequence[Any]) -> Iterator[dict[Any, int]]:
    """Let running statistics become the mean over the calls of each layer, whose numbers it yields.

    Batch norm can average cumulatively by itself (``momentum=None``), but then a GPU is waited for
    at each call: how many there were is a tensor. So they are counted here; only where a layer's
    ``forward`` is called past its hooks it does so by itself.
    """
    times = dict.fromkeys(layers, 0)

    def count(layer: Any, _: Any) -> None:
        times[layer] += 1
        layer.momentum = 1 / times[layer]

    flags = [(module, module.training) for module in model.modules()]
    former = [(x, x.momentum, x.running_mean.clone(), x.running_var.clone()) for x in layers]
    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        for module, _ in flags:
            module.training = module in times
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None if _counts(layer) else 1.0
        yield times
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in flags:
            module.training = training
        for layer, momentum, mean, variance in former:
            layer.momentum = momentum
            if not times[layer] and _counts(layer):
                times[layer] = int(layer.num_batches_tracked)
            if not times[layer]:  # no call has reached it
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(variance)


def has_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by running statistics."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def _averaged(model: nn.Module) -> dict[str, Any]:
    """The layers with such statistics, by name."""
    return {name: module for name, module in model.named_modules() if _averages(module)}


def _averages(module: nn.Module) -> bool:
    """Whether these are averaged over batches, and not learnt."""
    return (
        has_statistics(module)
        and hasattr(module, "reset_running_stats")
        and hasattr(module, "momentum")
    )


def _counts(layer: Any) -> bool:
    """Whether a layer can average cumulatively by itself, for which it counts batches."""
    return isinstance(layer, _BatchNorm) and layer.num_batches_tracked is not None
