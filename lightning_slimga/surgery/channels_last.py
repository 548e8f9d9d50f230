"""Channels-last: the order of numbers in memory in which a processor convolves quickest."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mkldnn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_slimga.graph.tensors import memory_of
from lightning_slimga.running.calls import Call, run_all
from lightning_slimga.running.outputs import output_tensors
from lightning_slimga.surgery.analysis import running
from lightning_slimga.surgery.proof.comparison import compare_outputs

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def channels_last(model: nn.Module, modules: Iterable[str] = ("",)) -> Iterator[None]:
    """Let 2-d convolutions on a CPU run in channels-last memory format for a while.

    They get their input in that format; then their results are in it, too, and what follows keeps
    it. In the usual format a processor reorders the numbers for each convolution, and widths that
    do not suit its vectors cost it more than here. Values are the same up to rounding. Weights
    stay as they are.

    Args:
        model: the network.
        modules: names of the modules inside which it holds; elsewhere nothing changes.
    """
    inside, names = _Inside(), dict.fromkeys(modules)
    with ExitStack() as hooks:
        for module in map(model.get_submodule, names):
            # The first to hear of a call, and the last, also when it fails.
            hooks.callback(module.register_forward_pre_hook(inside.enter, prepend=True).remove)
            hooks.callback(module.register_forward_hook(inside.leave, always_call=True).remove)
        for convolution in _convolutions(model) if names else ():
            hooks.callback(convolution.register_forward_pre_hook(inside.reorder).remove)
        yield


class _Inside:
    """Knows whether one of some modules runs at the moment."""

    def __init__(self) -> None:
        self._depth = 0

    def enter(self, *_: Any) -> None:
        self._depth += 1

    def leave(self, *_: Any) -> None:
        self._depth -= 1

    def reorder(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give a convolution its input in channels-last."""
        if not self._depth or not inputs or not _gains(inputs[0]):
            return inputs
        return (inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])


def runs_channels_last(model: nn.Module, calls: Sequence[Call]) -> bool:
    """Whether a network does in :func:`channels_last` what it does otherwise, and nobody notices.

    Code may ask for the usual format (``view``, ``as_strided``), and whoever receives a result may,
    too: so results must have the strides that they have otherwise, and nothing in another format
    may be left when the calls are over, as features that ``forward`` puts aside.

    Args:
        model: the network; left as it was.
        calls: how it is run in evaluation mode.

    Returns:
        Whether it does; False where there is no convolution that would be quicker.
    """
    if not any(_gains(convolution.weight) for convolution in _convolutions(model)):
        return False
    try:
        with running(model, as_it_is=True):
            wanted = run_all(model, calls)
        with running(model, as_it_is=True):
            with channels_last(model, [call.module for call in calls]), _Unusual() as unusual:
                found = run_all(model, calls)
            same = compare_outputs(wanted, found) is None and _strides(wanted) == _strides(found)
            del found
            return same and not unusual.left
    except Exception:  # whatever code raises that does not expect the format
        return False


class _Unusual(TorchDispatchMode):
    """Remembers memory in which numbers have another order, without keeping it alive.

    Memory of a view is that of what it is a view of.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._expired: list[Callable[[], bool]] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {memory_of(value) for value in tree_leaves((args, kwargs)) if _is_strided(value)}
        for value in tree_leaves(out):
            if _is_strided(value) and not value.is_contiguous() and memory_of(value) not in known:
                self._remember(value)
        return out

    def _remember(self, tensor: Tensor) -> None:
        memory = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._expired.append(memory.expired)

    @property
    def left(self) -> bool:
        """Whether somebody still has such memory."""
        if self._alive():
            gc.collect()  # results may refer to themselves
        return self._alive()

    def _alive(self) -> bool:
        return not all(expired() for expired in self._expired)


def _convolutions(model: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    """Those for which the memory format makes a difference."""
    if not mkldnn.is_available():  # type: ignore[no-untyped-call]  # others gain nothing
        return []
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]


def _gains(value: Any) -> bool:
    """Whether a convolution's input or weight is one that it reads quicker in channels-last."""
    plain = isinstance(value, Tensor) and value.device.type == "cpu" and value.dim() == 4
    return plain and type(value) in (Tensor, nn.Parameter) and value.dtype in _DTYPES


def _is_strided(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _strides(outputs: Any) -> list[tuple[int, ...]]:
    return [tensor.stride() if _is_strided(tensor) else () for _, tensor in output_tensors(outputs)]
