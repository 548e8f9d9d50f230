"""A recorded call of a module: how a network is run, without knowing its training script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Call:
    """One call of a (sub)module with the arguments that it received.

    Attributes:
        module: dotted name of the called module; ``""`` is the model itself.
        args: positional arguments.
        kwargs: keyword arguments.
    """

    module: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """Replay the call on ``model``, or on a copy of it.

        Args:
            model: the module that ``self.module`` is relative to.

        Returns:
            Whatever the called module returns.
        """
        return model.get_submodule(self.module)(*self.args, **self.kwargs)


def calls_from_example(example_inputs: Any) -> tuple[Call, ...]:
    """Turn what a user calls "example inputs" into calls of the whole model.

    Args:
        example_inputs: a Tensor, a tuple or list of positional arguments, a dict of keyword
            arguments, or a sequence of :class:`Call` (taken as it is).

    Returns:
        The calls; one, unless calls were given.

    Raises:
        TypeError: for ``None`` or an empty sequence of calls.
    """
    if isinstance(example_inputs, Call):
        return (example_inputs,)
    if isinstance(example_inputs, dict):
        return (Call("", kwargs=dict(example_inputs)),)
    if isinstance(example_inputs, (tuple, list)):
        if example_inputs and all(isinstance(x, Call) for x in example_inputs):
            return tuple(example_inputs)
        return (Call("", args=tuple(example_inputs)),)
    if example_inputs is None:
        raise TypeError(
            "Expected argument `example_inputs` to be a Tensor, a tuple of arguments or a dict of"
            " keyword arguments, but got None. Pass what one forward call of the model receives."
        )
    return (Call("", args=(example_inputs,)),)
