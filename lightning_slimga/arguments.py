"""What arguments may be: a rule for each kind, one sentence where it does not hold, plain values.

Numbers of NumPy count as Python's and become them; True and False are no numbers, and nothing else
is true or false.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_slimga.graph.exclusions import matching
from lightning_slimga.graph.twins import Pair, inside, structure

REFUSED: Any = object()
"""What a rule makes of a value that it does not take."""
_SHOWN = 200  # characters of a wrong value


@dataclass(frozen=True)
class Rule:
    """What one argument may be.

    Attributes:
        expected: that, in words: "Expected argument `x` to be ...".
        take: turns a value into a plain one, or into `REFUSED`.
    """

    expected: str
    take: Callable[[Any], Any]

    def check(self, name: str, value: Any) -> Any:
        """Return the value as plain data.

        Raises:
            ValueError: naming the argument, what it may be, and what came.
        """
        taken = self.take(value)
        expect(taken is not REFUSED, name, self.expected, value)
        return taken


def expect(holds: bool, name: str, expected: str, got: Any) -> None:
    """Refuse an argument in words.

    Raises:
        ValueError: unless `holds`.
    """
    if not holds:
        shown = repr(got)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} …"
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got {shown}.")


def checked(rules: Mapping[str, Rule], **given: Any) -> dict[str, Any]:
    """Return arguments as plain data.

    Raises:
        ValueError: naming the first that is not what its rule takes.
    """
    return {name: rules[name].check(name, value) for name, value in given.items()}


def check_fields(instance: Any, names: Iterable[str], rules: Mapping[str, Rule]) -> None:
    """Make plain data of fields of a frozen dataclass.

    Raises:
        ValueError: naming the first that is not what its rule takes.
    """
    given = {name: getattr(instance, name) for name in names}
    for name, value in checked(rules, **given).items():
        object.__setattr__(instance, name, value)


def as_called(instance: Any, given: Mapping[str, Any]) -> str:
    """Return the call that makes such an object, without arguments that are at their defaults."""
    known = inspect.signature(type(instance)).parameters
    shown = [
        f"{name}={value!r}"
        for name, value in given.items()
        if name not in known or value != known[name].default
    ]
    return f"{type(instance).__name__}({', '.join(shown)})"


def plain_number(value: Any) -> Any:
    """An int or a float, also of NumPy's kinds; `REFUSED` for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return REFUSED
    return int(value) if isinstance(value, Integral) else float(value)


def number(expected: str, holds: Callable[[float], bool]) -> Rule:
    """A number of which something holds."""

    def take(value: Any) -> Any:
        found = plain_number(value)
        return found if found is not REFUSED and holds(found) else REFUSED

    return Rule(expected, take)


def whole(least: int, below: int | None = None) -> Rule:
    """A whole number from `least` on, below a power of two."""

    def take(value: Any) -> Any:
        found = plain_number(value)
        inside = isinstance(found, int) and found >= least and (below is None or found < below)
        return found if inside else REFUSED

    top = "" if below is None else f" and below 2**{below.bit_length() - 1}"
    return Rule(f"a whole number of at least {least}{top}", take)


def optional(rule: Rule) -> Rule:
    """What a rule takes, or None."""
    take = rule.take
    return Rule(f"{rule.expected} or None", lambda value: None if value is None else take(value))


def one_of(*names: str) -> Rule:
    """One of some words."""
    *some, last = map(repr, names)
    return Rule(
        f"{', '.join(some)} or {last}",
        lambda value: value if isinstance(value, str) and value in names else REFUSED,
    )


def text(expected: str) -> Rule:
    """Text that is not empty."""
    return Rule(expected, lambda value: value if isinstance(value, str) and value else REFUSED)


def _patterns(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        return REFUSED
    found = tuple(value)
    return found if all(isinstance(one, str) for one in found) else REFUSED


def _path(value: Any) -> Any:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else REFUSED
    return path if isinstance(path, str) and path else REFUSED


def _pairs(value: Any) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return REFUSED
    found = tuple(value)
    good = all(isinstance(pair, (list, tuple)) and _is_pair(pair) for pair in found)
    return tuple((first, copy) for first, copy in found) if good else REFUSED


def _is_pair(pair: Any) -> bool:
    return len(pair) == 2 and all(isinstance(name, str) and name for name in pair)


FLAG = Rule("True or False", lambda v: bool(v) if isinstance(v, (bool, np.bool_)) else REFUSED)
PATTERNS = Rule('a list of patterns of module names, such as ["head.*"]', _patterns)
NAMES = Rule("a list of names of parameters", _patterns)
PATH = Rule("the path of a file", _path)
TWINS = Rule('a list of pairs of module names, such as [("student", "teacher")]', _pairs)
AMOUNT = number("a finite number >= 0", lambda value: 0 <= value < math.inf)
POSITIVE = number("a positive number", lambda value: 0 < value < math.inf)

SURGERY: Mapping[str, Rule] = {
    "ignore": PATTERNS,
    "only_scaled": FLAG,
    "allow_approximate": FLAG,
    "min_channels": whole(1),
    "round_to": whole(1),
}
"""What the options of a surgery may be."""


def check_patterns(model: nn.Module, patterns: Iterable[str], argument: str = "ignore") -> None:
    """Refuse patterns that match no module, before anything runs.

    Args:
        model: the network.
        patterns: of module names; a name stands for its submodules too.
        argument: what the user has given them as.

    Raises:
        ValueError: naming the pattern, and the modules there are.
    """
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not matching(names, pattern):
            raise ValueError(
                f"Expected argument `{argument}` to hold patterns of module names, but {pattern!r}"
                f" matches none of {', '.join(filter(None, names))[:500]}."
            )


def check_twins(model: nn.Module, twins: Any) -> tuple[Pair, ...]:
    """Refuse pairs of modules that cannot keep the same channels, before anything runs.

    Args:
        model: the network.
        twins: pairs of names of a module and its copy; of an ``AveragedModel`` the module in it is
            meant.

    Returns:
        The pairs, by the names of the modules that are meant.

    Raises:
        ValueError: naming the pair, and what is wrong with it.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for pair in TWINS.check("twins", twins):
        for name in pair:
            expect(name in modules, "twins", "pairs of names of modules", name)
        first, copy = (f"{n}.module" if isinstance(modules[n], AveragedModel) else n for n in pair)
        apart = not inside(first, copy) and not inside(copy, first)
        alike = structure(modules[first]) == structure(modules[copy])
        expected = "pairs of two modules whose parameters have the same names and shapes"
        expect(apart and alike, "twins", expected, pair)
        found.append((first, copy))
    return tuple(found)
