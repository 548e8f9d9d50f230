"""The table of op rules: one small function per op, looked up by the op's qualified name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]
"""``rule(op, *arguments in schema order) -> labels of the output(s)``; see :func:`rule`."""

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how labels flow through an op.

    The decorated function receives an :class:`~lightning_slimga.graph.Op` and then every
    argument of the op's schema, in order, defaults filled in. It returns the labels of the
    output tensor (a list with one entry per dimension, see ``graph/labels.py``), or a tuple
    of such lists where the op has several outputs; ``None`` stands for an output without labels.
    In-place and ``out=`` variants use the rule of the plain op.

    Args:
        *names: qualified op names, ``"aten::convolution"`` or ``"mylib::myop"`` (without overload).

    Raises:
        ValueError: when a name has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if "::" not in name:
                raise ValueError(
                    f"Expected argument `names` to be qualified op names such as"
                    f" 'mylib::myop', but got {name!r}."
                )
            if name in _RULES:
                raise ValueError(f"op {name} has a rule already: {_RULES[name].__qualname__}")
            _RULES[name] = function
        return function

    return register


def find_rule(name: str) -> Rule | None:
    """The rule of an op, also of its in-place variant (``aten::add_`` uses ``aten::add``)."""
    found = _RULES.get(name)
    if found is None and name.endswith("_"):
        found = _RULES.get(name.rstrip("_"))
    return found
