"""Set attributes of anything for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any

_MISSING = object()


@contextmanager
def swapped(owner: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of `owner` for a while; those it did not have itself are deleted again."""
    before = {}
    for name in attributes:
        described = hasattr(getattr_static(type(owner), name, None), "__set__")  # a property
        own = described or name in vars(owner)
        before[name] = getattr(owner, name) if own else _MISSING
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not _MISSING:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)
