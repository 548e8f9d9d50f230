"""What is asked of an op's schema all the time; asking the schema itself is slow."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple


class Signature(NamedTuple):
    """The arguments of an ATen overload.

    Attributes:
        names: their names, in schema order.
        defaults: their defaults; None where there is none.
        written: positions of those that the op writes into.
    """

    names: tuple[str, ...]
    defaults: tuple[Any, ...]
    written: tuple[int, ...]

    @classmethod
    @cache
    def of(cls, func: Any) -> Signature:
        """The signature of an overload."""
        arguments = func._schema.arguments
        infos = [argument.alias_info for argument in arguments]
        return cls(
            tuple(argument.name for argument in arguments),
            tuple(argument.default_value for argument in arguments),
            tuple(i for i, info in enumerate(infos) if info is not None and info.is_write),
        )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """All arguments in schema order, defaults filled in."""
        rest = zip(self.names[len(args) :], self.defaults[len(args) :], strict=True)
        return [*args, *(kwargs.get(name, default) for name, default in rest)]
