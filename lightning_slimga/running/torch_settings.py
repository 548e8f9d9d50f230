"""Which kernels torch chooses: exact ones for the analysis; no tuning or compiling for a try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch.backends import cuda, cudnn, mkldnn

from lightning_slimga.running.swapped import swapped

_EXACT = ("none", "ieee")
_DEVICES = ("cpu", "cuda", "mps", "xpu")  # that have autocast


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TensorFloat-32 and no bfloat16 inside of a contraction of float32, for a while.

    A GPU may round the factors of a product to 10 bits (convolutions do so by default). Two
    networks that compute the same then differ by a thousandth, in which a wrong cut could hide,
    and for which a right one would be taken for wrong.

    Every setting is restored on exit. Torch has two sets of them, older ones (``allow_tf32``,
    ``set_float32_matmul_precision``) and ones by backend and op (``fp32_precision``, torch 2.9),
    and refuses to read the older ones where the two say different things. So both are set, unless
    a user has parted them himself.
    """
    older, newer = _older(), _newer()
    try:
        if "matmul" in older:
            torch.set_float32_matmul_precision("highest")
        if "cudnn" in older:
            cudnn.allow_tf32 = False
        for owner, _ in newer:
            if owner.fp32_precision not in _EXACT:
                owner.fp32_precision = "ieee"
        yield
    finally:
        if "matmul" in older:
            torch.set_float32_matmul_precision(older["matmul"])
        if "cudnn" in older:
            cudnn.allow_tf32 = older["cudnn"]
        for owner, precision in newer:
            if owner.fp32_precision != precision:
                owner.fp32_precision = precision


@contextmanager
def no_autocast() -> Iterator[None]:
    """No autocast around for a while; that of the network itself stays.

    It keeps casted copies of the weights, which are no parameters and are held on to.
    """
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def untuned() -> AbstractContextManager[None]:
    """No trials of cuDNN's kernels for a while: `Trainer(benchmark=True)` asks for some per shape.

    They pay where shapes stay. Each candidate of a search has shapes of its own.
    """
    return swapped(cudnn, benchmark=False)


def eager() -> AbstractContextManager[Any]:
    """Let compiled code run uncompiled for a while.

    It would compile anew for each shape until it gives up for good, and it does not see hooks that
    were added after compilation.
    """
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _older() -> dict[str, Any]:
    """The older settings, as far as they can be read."""
    found: dict[str, Any] = {}
    with suppress(RuntimeError):
        found["matmul"] = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        found["cudnn"] = cudnn.allow_tf32
    return found


def _newer() -> list[tuple[Any, str]]:
    """What has a precision of its own, and which."""
    owners: list[Any] = [cuda.matmul]
    for backend in (cudnn, mkldnn):
        owners += [getattr(backend, op, None) for op in ("conv", "rnn", "matmul")]
    return [(owner, owner.fp32_precision) for owner in owners if hasattr(owner, "fp32_precision")]
