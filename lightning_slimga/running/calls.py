"""A recorded call of a module: how a network is run, without knowing its training script."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_slimga.running.model_state import preserved
from lightning_slimga.running.parameter_writes import unwritten
from lightning_slimga.running.torch_settings import eager

FEW_SAMPLES = 2
"""Enough to run any batch statistics, few enough to make an analysis cheap."""
MORE_SAMPLES = (FEW_SAMPLES, 4 * FEW_SAMPLES, 16 * FEW_SAMPLES)
"""Tried in turn, as long as modules that the whole batch reaches (experts) are not reached."""
MOST_VALUES = 8
"""An argument that takes more values than this is data (a step, a caption), not a choice."""


@dataclass(frozen=True)
class Call:
    """One call of a (sub)module with the arguments that it received.

    Attributes:
        module: dotted name of the called module; ``""`` is the model itself.
        args: positional arguments.
        kwargs: keyword arguments.
        counted: whether its MACs are those of the network; False for other ways to call it.
        reached: names of the modules with parameters that ran in it, where that was watched.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> Call("1", args=(torch.zeros(2, 12),)).run(model).shape
        torch.Size([2, 5])
    """

    module: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    counted: bool = field(default=True, repr=False)
    reached: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def run(self, model: nn.Module) -> Any:
        """Replay the call on ``model``, or on a copy of it.

        Args:
            model: the module that ``self.module`` is relative to.

        Returns:
            Whatever the called module returns.
        """
        return model.get_submodule(self.module)(*self.args, **self.kwargs)

    def to(self, device: Any) -> Call:
        """The same call with its tensors on a device."""
        args, kwargs = tree_map(
            lambda x: x.to(device) if isinstance(x, Tensor) else x, (self.args, self.kwargs)
        )
        return replace(self, args=args, kwargs=kwargs)


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


def narrowed(call: Call, samples: int) -> tuple[Call, int | None]:
    """The same call on the first few samples of its batch.

    Args:
        call: a call whose tensors have the batch in their first dimension.
        samples: how many samples to keep, at least 1.

    Returns:
        The smaller call and the number of samples in it. Where the tensors do not agree on a first
        dimension the call comes back as it is, with None.
    """
    leaves, spec = tree_flatten((call.args, call.kwargs))
    sizes = {tensor.shape[0] for tensor in _tensors(leaves)}
    if len(sizes) != 1:
        return call, None
    samples = min(samples, sizes.pop())
    cut = [leaf[:samples] if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(cut, spec)
    return replace(call, args=args, kwargs=kwargs), samples


def examples_of(
    model: nn.Module, calls: Sequence[Call], samples: int, *, training: bool
) -> tuple[list[Call], int | None]:
    """The calls that stand for all, on few samples if the network runs on few.

    There are more samples where fewer do not reach all modules that the calls have reached.

    Args:
        model: the network; left as it was.
        calls: recorded calls on whole batches.
        samples: how many samples are enough.
        training: whether the calls are made in training mode.

    Returns:
        The calls, and the number of samples in each; None where it cannot be told.
    """
    chosen, wanted = representatives(calls), reach(calls)
    for more in (samples, 4 * samples, 16 * samples, sys.maxsize):
        few = [narrowed(call, more) for call in chosen]
        if more == sys.maxsize:
            break  # as they were recorded
        try:
            if wanted <= _replayed(model, [call for call, _ in few], training):
                break
        except Exception:  # whatever a network raises that is made for one batch size
            continue
    known = [count for call, count in few if call.counted and count is not None]
    return [call for call, _ in few], min(known, default=None)


def representatives(calls: Sequence[Call]) -> list[Call]:
    """The calls that stand for all: the first of each kind, and those that reach further modules.

    Calls are of one kind if they call the same module with the same structure of arguments, and
    with the same choices: None, booleans, words, whole numbers (also in tensors without
    dimensions), members of an Enum. An argument that takes more than `MOST_VALUES` values among
    calls that are else alike is no choice, and there are at most twice as many kinds of them.
    """
    alike: dict[Hashable, list[tuple[Call, list[Any]]]] = {}
    for call in calls:
        structure, values = _structure(call)
        alike.setdefault(structure, []).append((call, values))
    kinds = {id(call): kind for group in alike.values() for call, kind in _kinds(group)}
    known: set[Hashable] = set()
    reached: set[str] = set()
    chosen = []
    for call in calls:
        if kinds[id(call)] not in known or not call.reached <= reached:
            chosen.append(call)
        known.add(kinds[id(call)])
        reached |= call.reached
    return chosen


def reach(calls: Sequence[Call]) -> frozenset[str]:
    """Names of the modules with parameters that ran in any of some calls."""
    return frozenset().union(*(call.reached for call in calls))


def counted_once(calls: Sequence[Call]) -> list[Call]:
    """Let the first call of each module count: others are other ways to do the same work."""
    seen: set[str] = set()
    marked = []
    for call in calls:
        marked.append(replace(call, counted=call.counted and call.module not in seen))
        seen.add(call.module)
    return marked


def rows(calls: Sequence[Call], others: Sequence[Call], samples: int, more: int) -> int:
    """How many samples a network has seen, from calls that some samples and some more have made.

    Two views of a sample in one batch are two samples to the network. What grows with the number
    of samples is the batch dimension, wherever it is. Where nothing does that evenly (lists of
    images, the nodes of graphs), samples are those of the data.

    Args:
        calls: what `samples` samples of the data have made.
        others: what `more` of them have made, in the same order.
        samples: > 0.
        more: > `samples`, or equal where there are no more.

    Returns:
        The number of samples in `calls`, at least `samples`.
    """
    found = []
    for call, other in zip(calls, others, strict=False):
        pairs = zip(_tensors(_leaves(call)), _tensors(_leaves(other)), strict=False)
        sizes = {
            size
            for a, b in pairs
            for size in zip(a.shape, b.shape, strict=False)
            if size[0] != size[1]
        }
        if call.counted and len(sizes) == 1:
            (mine, theirs) = sizes.pop()
            if mine * more == theirs * samples and mine % samples == 0:
                found.append(mine)
    return min(found, default=samples)


@contextmanager
def noting_reach(model: nn.Module) -> Iterator[set[str]]:
    """Collect the names of the modules with parameters that run."""
    names: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: names.add(name))
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        and next(module.parameters(), None) is not None
    ]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _replayed(model: nn.Module, calls: Sequence[Call], training: bool) -> set[str]:
    with eager(), preserved(model), unwritten(model), torch.no_grad(), noting_reach(model) as names:
        model.train(training)
        run_all(model, calls)
    return names


def _kinds(group: list[tuple[Call, list[Any]]]) -> list[tuple[Call, Hashable]]:
    """The kinds of calls of one structure, by the values of those arguments that are choices."""
    columns = list(zip(*(values for _, values in group), strict=True))
    choices = [i for i, column in enumerate(columns) if len(set(column)) <= MOST_VALUES]
    structure = _structure(group[0][0])[0]
    kinds: list[tuple[Call, Hashable]] = []
    known: dict[Hashable, Hashable] = {}
    for call, values in group:
        chosen = tuple(values[i] for i in choices)
        if chosen not in known and len(known) < 2 * MOST_VALUES:
            known[chosen] = (structure, chosen)
        kinds.append((call, known.get(chosen, (structure, None))))
    return kinds


def _structure(call: Call) -> tuple[Hashable, list[Any]]:
    """What is called with arguments of which form, and the values that may be choices."""
    leaves, spec = tree_flatten((call.args, call.kwargs))
    form = tuple(leaf.dim() if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)
    return (call.module, str(spec), form), [_choice(leaf) for leaf in leaves]


def _choice(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        whole = not value.dim() and not value.is_floating_point() and not value.is_complex()
        return value.item() if whole and value.device.type != "meta" else None
    plain = isinstance(value, (str, int, np.integer, Enum, torch.Size, torch.dtype))
    return value if plain else None


def _leaves(call: Call) -> list[Any]:
    return tree_flatten((call.args, call.kwargs))[0]


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    """Those of some arguments that are tensors with dimensions."""
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
