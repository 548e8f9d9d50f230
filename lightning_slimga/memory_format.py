"""Channels-last: the order of numbers in memory in which a processor convolves quickest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.backends import mkldnn

from lightning_slimga.analysis import output_tensors, running
from lightning_slimga.calls import Call, run_all
from lightning_slimga.comparison import compare_outputs

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Let 2-d convolutions on a CPU run in channels-last memory format for a while.

    With their weights in that format their results are, too, and what follows keeps it. In the
    usual format a processor reorders the numbers for each convolution, and widths that do not suit
    its vectors cost it more than here. Values are the same up to rounding.

    The weights stay the same objects; on exit they have the memory that they had.

    Args:
        model: the network.
    """
    usual = {weight: weight.data for weight in _weights(model)}
    try:
        for weight, data in usual.items():
            weight.data = data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for weight, data in usual.items():
            weight.data = data


def runs_channels_last(model: nn.Module, calls: Sequence[Call]) -> bool:
    """Whether a network does in :func:`channels_last` what it does otherwise, and nobody notices.

    Code may ask for the usual format (``view``, ``as_strided``), and whoever receives a result may,
    too: so results must have the strides that they have otherwise.

    Args:
        model: the network; left as it was.
        calls: how it is run in evaluation mode.

    Returns:
        Whether it does; False where there is no convolution that would be quicker.
    """
    if not _weights(model):
        return False
    try:
        with running(model, as_it_is=True):
            wanted = run_all(model, calls)
        with running(model, as_it_is=True), channels_last(model):
            found = run_all(model, calls)
    except Exception:  # whatever code raises that does not expect the format
        return False
    return compare_outputs(wanted, found) is None and _strides(wanted) == _strides(found)


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the convolutions for which the memory format makes a difference."""
    if not mkldnn.is_available():  # type: ignore[no-untyped-call]  # others gain nothing
        return []
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    convolutions = (module for module in model.modules() if isinstance(module, kinds))
    weights = (module._parameters.get("weight") for module in convolutions)
    return [w for w in weights if w is not None and w.device.type == "cpu" and w.dtype in _DTYPES]


def _strides(outputs: Any) -> list[tuple[int, ...]]:
    return [
        tensor.stride() if tensor.layout is torch.strided else ()
        for _, tensor in output_tensors(outputs)
    ]
