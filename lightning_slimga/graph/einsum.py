"""Einsum: torch makes a product of matrices of it, or not, as the sizes come out."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Einsums(TorchFunctionMode):
    """Tells whether a call of ``torch.einsum`` is running.

    Where a single entry is left of what it sums over, torch multiplies number by number instead of
    matrices, and its counter of operations counts nothing.

    Attributes:
        running: whether it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.running = func is torch.einsum
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.running = False
