"""Python's search for garbage, less often."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_OBJECTS = 100_000


@contextmanager
def rare_collection() -> Iterator[None]:
    """Look for garbage only after very many new objects; works as a decorator, too.

    An analysis makes many small objects that stay. Python would look through them, and through
    all else in the process, again and again: up to a third of the time of an analysis.
    """
    first, *others = gc.get_threshold()
    if first:  # 0: the user has switched it off
        gc.set_threshold(max(first, _OBJECTS), *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)
