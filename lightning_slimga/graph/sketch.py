"""Passes that are watched for shapes alone need no values: heavy ops are drawn, not computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from lightning_slimga.graph.trace import tensors_in

T = TypeVar("T")

_CONTRACTION = 2**15  # numbers among the arguments from which drawing is quicker than computing
_OTHER = 2**19
_RESULTS = 2  # a norm's saved statistics, its second and third result, are not what meta says
_KNOWN = {"aten", "prim", "prims"}


class ValuesNeeded(BaseException):
    """An op asks for values in a pass that has none; no error, so that no ``except`` takes it."""


class Sketch:
    """Return the shapes of heavy ops without their values, as long as nobody asks for these.

    Shapes come from torch's own meta kernels. All that is drawn lies in one tensor of zeros, so it
    takes no memory to speak of. Only what depends on parameters is drawn: a table that a program
    computes once and keeps (outside of its modules, where nothing is restored) must be a real one.

    Attributes:
        drawn: whether any result so far has no values.
        refused: whether values were asked for.
    """

    def __init__(self) -> None:
        self.drawn = False
        self.refused = False
        self._zeros: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], learned: bool) -> Any:
        """What an op returns.

        Args:
            func: the ATen overload.
            args: its positional arguments.
            kwargs: its keyword arguments.
            learned: whether one of them depends on a parameter.

        Raises:
            ValuesNeeded: when the op's result, or its shape, would depend on values that are
                not there.
        """
        traits = _Traits.of(func)
        if self.drawn and traits.asks and depends_on_values(func, args):
            self.refused = True
            raise ValuesNeeded(func)
        if learned and traits.drawable:
            tensors = tensors_in([*args, *kwargs.values()])
            if sum(t.numel() for t in tensors) > traits.least and all(map(_is_plain, tensors)):
                return self._draw(func, args, kwargs)
        return func(*args, **kwargs)

    def _draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        originals: dict[int, Tensor] = {}
        shadows = [_shadow(value, originals) for value in args]
        named = {name: _shadow(value, originals) for name, value in kwargs.items()}
        try:
            out = func(*shadows, **named)
        except NotImplementedError:  # no meta kernel
            return func(*args, **kwargs)
        self.drawn = True
        device = max(tensors_in([*args, *kwargs.values()]), key=Tensor.dim).device
        if isinstance(out, (tuple, list)):
            return type(out)(self._filled(value, originals, device) for value in out)
        return self._filled(out, originals, device)

    def _filled(self, value: Any, originals: dict[int, Tensor], device: torch.device) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in originals:  # written in place
            return originals[id(value)]
        size, stride = value.shape, value.stride()
        length = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True) if n)
        zeros = self._zeros.get((value.dtype, device))
        if zeros is None or zeros.numel() < length:
            zeros = torch.zeros(length, dtype=value.dtype, device=device)
            self._zeros[value.dtype, device] = zeros
        return zeros.as_strided(size, stride)


def drawn_if_possible(attempt: Callable[[Sketch | None], T], possible: bool) -> T:
    """Run a pass without values, and again with them where that did not work out.

    Args:
        attempt: runs the pass; it must leave nothing behind.
        possible: whether to try without values at all.
    """
    if possible:
        sketch = Sketch()
        try:
            found = attempt(sketch)
            if not sketch.refused:
                return found
        except (Exception, ValuesNeeded):  # if it is not for want of values it comes again
            pass
    return attempt(None)


def depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an op's result or its size is decided by what is in its arguments, as in ``item``."""
    if func._schema.name != "aten::index":
        return _Traits.of(func).asks
    masks = [t for t in tensors_in(args) if t.dtype in (torch.bool, torch.uint8)]
    return bool(masks)


class _Traits(NamedTuple):
    """What is asked of an op's schema all the time."""

    asks: bool
    drawable: bool
    least: int

    @classmethod
    @cache
    def of(cls, func: Any) -> _Traits:
        arguments = func._schema.arguments
        infos = [argument.alias_info for argument in arguments]
        written = [i for i, info in enumerate(infos) if info is not None and info.is_write]
        views = any(info is not None and not info.is_write for info in infos)
        special = torch.Tag.inplace_view in func.tags or any(a.name == "device" for a in arguments)
        by_value = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        asks = bool(by_value & {*func.tags}) or func.namespace not in _KNOWN
        special |= views or asks or len(func._schema.returns) > _RESULTS
        return cls(
            asks,
            not special and written in ([], [0]),
            _CONTRACTION if func.overloadpacket in flop_registry else _OTHER,
        )


def _is_plain(tensor: Tensor) -> bool:
    kinds = (Tensor, torch.nn.Parameter)
    return type(tensor) in kinds and tensor.layout is torch.strided and not tensor.is_quantized


def _shadow(value: Any, originals: dict[int, Tensor]) -> Any:
    """The same argument on the device that has no values."""
    if isinstance(value, Tensor):
        shadow = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        originals[id(shadow)] = value
        return shadow
    if isinstance(value, (tuple, list)):
        return [_shadow(item, originals) for item in value]
    return value
