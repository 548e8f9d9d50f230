"""The words of the random-network grammar: a step reads some values and adds some values."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Choices(Protocol):
    """Where a generator gets its decisions from."""

    def integer(self, low: int, high: int) -> int:
        """A number in [low, high]."""


class SeededChoices:
    """Decisions from a seed; the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


def pick(choices: Choices, options: Sequence[T]) -> T:
    """One of ``options``; the first is the simplest."""
    return options[choices.integer(0, len(options) - 1)]


def flip(choices: Choices) -> bool:
    """True half the time; False is simpler."""
    return bool(choices.integer(0, 1))


class Step(nn.Module):
    """One step of a random network.

    Args:
        name: what it does, for people.
        function: ``function(step, *values)`` -> a tensor or a tuple of tensors.
        sources: positions of the values that it reads besides the main one.
        parts: modules, parameters, buffers and numbers that the function uses.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], sources: Sequence[int] = (), **parts: Any
    ) -> None:
        super().__init__()
        self.name, self.function, self.sources = name, function, list(sources)
        for key, value in parts.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(key, value)
            else:
                setattr(self, key, value)

    def forward(self, *values: Tensor) -> Any:
        return self.function(self, *values)

    def extra_repr(self) -> str:
        tensors = {**self._parameters, **self._buffers}
        shapes = [f"{k}={tuple(t.shape)}" for k, t in tensors.items() if t is not None]
        numbers = [f"{k}={v}" for k, v in vars(self).items() if type(v) is int]
        return ", ".join([self.name, f"sources={self.sources}", *shapes, *numbers])


Env = Sequence[Tensor]
Maker = Callable[[Choices, Tensor, Env], "Step | None"]

MAKERS: dict[int, list[Maker]] = {2: [], 3: [], 4: []}
"""Makers of steps by the number of dimensions of the value that they read."""


HARSH: set[Maker] = set()
"""Makers of steps after which hardly anything can go; half of the networks do without."""


def word(*ranks: int, weight: int = 1, harsh: bool = False) -> Callable[[Maker], Maker]:
    """Register a maker for values of these ranks; ``weight`` times as likely as others."""

    def register(maker: Maker) -> Maker:
        for rank in ranks:
            MAKERS[rank] += [maker] * weight
        if harsh:
            HARSH.add(maker)
        return maker

    return register


def width(choices: Choices) -> int:
    """A number of channels with many divisors, sometimes an odd one or 1."""
    return pick(choices, [4, 6, 8, 12, 2, 3, 5, 1])


def divisor(choices: Choices, number: int) -> int:
    """A divisor greater than 1 where there is one."""
    return pick(choices, [d for d in range(2, number + 1) if number % d == 0] or [1])


def parameter(*shape: int) -> nn.Parameter:
    """A parameter that hides nothing: no entry is zero."""
    return nn.Parameter(torch.rand(shape, dtype=torch.float64) + 0.5)


def partners(env: Env, x: Tensor, axis: int | None = None) -> list[int]:
    """Positions of the values of the same shape, apart from ``axis``."""

    def reduced(t: Tensor) -> list[int]:
        return [n for i, n in enumerate(t.shape) if i != axis]

    return [i for i, t in enumerate(env) if t.dim() == x.dim() and reduced(t) == reduced(x)]
