"""A recorded call of a module: how a network is run, without knowing its training script."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_slimga.running.model_state import preserved
from lightning_slimga.running.parameter_writes import unwritten
from lightning_slimga.running.torch_settings import eager

FEW_SAMPLES = 2
"""Enough to run any batch statistics, few enough to make an analysis cheap."""


@dataclass(frozen=True)
class Call:
    """One call of a (sub)module with the arguments that it received.

    Attributes:
        module: dotted name of the called module; ``""`` is the model itself.
        args: positional arguments.
        kwargs: keyword arguments.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> Call("1", args=(torch.zeros(2, 12),)).run(model).shape
        torch.Size([2, 5])
    """

    module: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """Replay the call on ``model``, or on a copy of it.

        Args:
            model: the module that ``self.module`` is relative to.

        Returns:
            Whatever the called module returns.
        """
        return model.get_submodule(self.module)(*self.args, **self.kwargs)


def run_all(model: nn.Module, calls: Sequence[Call]) -> list[Any]:
    """Replay calls in order and return what each of them returns."""
    return [call.run(model) for call in calls]


def calls_from_example(example_inputs: Any) -> tuple[Call, ...]:
    """Turn what a user calls "example inputs" into calls of the whole model.

    Args:
        example_inputs: a Tensor, a tuple or list of positional arguments, a dict of keyword
            arguments, or a sequence of :class:`Call` (taken as it is).

    Returns:
        The calls; one, unless calls were given.

    Raises:
        TypeError: for ``None`` or an empty sequence of calls.
    """
    if isinstance(example_inputs, Call):
        return (example_inputs,)
    if isinstance(example_inputs, dict):
        return (Call("", kwargs=dict(example_inputs)),)
    if isinstance(example_inputs, (tuple, list)):
        if example_inputs and all(isinstance(x, Call) for x in example_inputs):
            return tuple(example_inputs)
        return (Call("", args=tuple(example_inputs)),)
    if example_inputs is None:
        raise TypeError(
            "Expected argument `example_inputs` to be a Tensor, a tuple of arguments or a dict of"
            " keyword arguments, but got None. Pass what one forward call of the model receives."
        )
    return (Call("", args=(example_inputs,)),)


def narrowed(call: Call, samples: int) -> tuple[Call, int]:
    """The same call on the first few samples of its batch.

    Args:
        call: a call whose tensors have the batch in their first dimension.
        samples: how many samples to keep, at least 1.

    Returns:
        The smaller call and the number of samples in it. Where the tensors do not agree on a first
        dimension the call comes back as it is, with the number 1.
    """
    leaves, spec = tree_flatten((call.args, call.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
    sizes = {tensor.shape[0] for tensor in tensors}
    if len(sizes) != 1:
        return call, 1
    samples = min(samples, sizes.pop())
    cut = [leaf[:samples] if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(cut, spec)
    return Call(call.module, args, kwargs), samples


def examples_of(
    model: nn.Module, calls: Sequence[Call], samples: int, *, training: bool
) -> tuple[list[Call], int]:
    """One call of each kind, on few samples if the network runs on few.

    Calls are of one kind if they call the same module with the same structure of arguments.

    Args:
        model: the network; left as it was.
        calls: recorded calls on whole batches.
        samples: how many samples are enough.
        training: whether the calls are made in training mode.

    Returns:
        The calls, and the number of samples in each.
    """
    kinds: dict[Hashable, Call] = {}
    for call in calls:
        kinds.setdefault(_kind(call), call)
    few = [narrowed(call, samples) for call in kinds.values()]
    try:
        with eager(), preserved(model), unwritten(model), torch.no_grad():
            model.train(training)
            for call, _ in few:
                call.run(model)
    except Exception:  # whatever a network raises that is made for one batch size
        few = [narrowed(call, sys.maxsize) for call in kinds.values()]
    return [call for call, _ in few], min((count for _, count in few), default=1)


def _kind(call: Call) -> Hashable:
    leaves, spec = tree_flatten((call.args, call.kwargs))
    return call.module, str(spec), tuple(map(_kind_of_argument, leaves))


def _kind_of_argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dim()
    return value if value is None or isinstance(value, (bool, str)) else type(value)
