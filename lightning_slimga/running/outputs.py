"""What a call returns: every tensor in it, whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_MAX_DEPTH = 8


def output_tensors(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a model's output with its place: containers, dataclasses, plain objects."""
    if isinstance(value, Tensor):
        yield path or "0", value
        return
    if depth > _MAX_DEPTH or isinstance(value, (str, bytes, int, float, type, nn.Module)):
        return
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple, set)):
        items = list(enumerate(value))
    elif hasattr(value, "__dict__"):
        items = list(vars(value).items())
    else:
        return
    for key, item in items:
        yield from output_tensors(item, f"{path}.{key}" if path else str(key), depth + 1)
