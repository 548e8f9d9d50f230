"""Random number generators that a program holds, whoever has made them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def rewinder(value: Any) -> Callable[[], None] | None:
    """Return what brings a generator back to where it stands now; None for anything else.

    Known are `torch.Generator`, `random.Random` and NumPy's `Generator`, `RandomState` and bit
    generators. (`random.SystemRandom` stands nowhere.)
    """
    if isinstance(value, torch.Generator):
        tensor = value.get_state()
        return lambda: _keep_silent(value.set_state(tensor))
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        version = value.getstate()
        return lambda: value.setstate(version)
    if isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    bits = value.bit_generator if isinstance(value, np.random.Generator) else value
    if isinstance(bits, np.random.BitGenerator):
        state = bits.state

        def rewind() -> None:
            bits.state = state

        return rewind
    return None


def _keep_silent(_: Any) -> None:
    """Drop what a method returns."""
