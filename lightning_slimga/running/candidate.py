"""Whether the network runs for this package, so that user code can leave lasting things undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


def is_candidate() -> bool:
    """Return whether the network runs as a candidate of the search, or to be analysed.

    Such a run leaves no trace in the fit. What cannot be undone (files, requests to a service) is
    up to the code that does it: ask this first. True inside every hook and step that runs for the
    search; False whenever they run for the fit.

    >>> is_candidate()
    False
    """
    return _depth > 0


@contextmanager
def as_candidate() -> Iterator[None]:
    """Let `is_candidate` say so for a while."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
