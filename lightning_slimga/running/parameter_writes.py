"""Parameters that a forward pass writes into: codebooks that are averages, momentum encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slimga.graph.signature import Signature
from lightning_slimga.graph.tensors import memory_of
from lightning_slimga.graph.trace import tensors_in


@contextmanager
def unwritten(model: nn.Module) -> Iterator[None]:
    """Give parameters back the values that they have now, whatever ops or ``.data`` do to them.

    A parameter is copied before the first op writes into its memory; of the others, which are
    nearly always all, nothing is copied.

    Args:
        model: the module whose parameters are kept.
    """
    parameters = [p for p in model.parameters() if not nn.parameter.is_lazy(p)]
    before = [(p, p.data) for p in parameters]
    with _Copies([data for _, data in before]) as copies:
        try:
            yield
        finally:
            for parameter, data in before:
                if memory_of(parameter) != memory_of(data) or parameter.shape != data.shape:
                    parameter.data = data
            copies.restore()


class _Copies(TorchDispatchMode):
    """Copies tensors before an op writes into their memory.

    Args:
        tensors: the tensors.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._at: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            self._at.setdefault(memory_of(tensor), []).append(tensor)
        self._at.pop(0, None)
        self._copied: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            signature = Signature.of(func)
            given = signature.bind(args, kwargs)
            for tensor in tensors_in([given[i] for i in signature.written]):
                for known in self._at.pop(memory_of(tensor), ()):
                    self._copied.append((known, known.clone()))
        return func(*args, **kwargs)

    def restore(self) -> None:
        """Write the copies back."""
        with torch.no_grad():
            for tensor, content in self._copied:
                tensor.copy_(content)
