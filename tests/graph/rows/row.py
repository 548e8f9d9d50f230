"""One row per op: something that runs it on a tensor of 8 channels, and what may go then.

To add an op: one function in ``graph/rules``, one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Middle = Callable[[Tensor], Tensor]

CHANNELS = 8


@dataclass(frozen=True)
class Row:
    """A network around an op.

    Attributes:
        op: the op that must be met.
        middle: a function, or a maker of a module, of (2, 8, *spatial) values.
        free: removable channels of the whole network; the stem alone has 8.
        spatial: sizes of the positions; with none the values are (2, 8).
    """

    op: str
    middle: Middle | type[nn.Module] | Callable[[], nn.Module]
    free: int = CHANNELS
    spatial: tuple[int, ...] = (4, 4)


class Own(nn.Module):
    """A parameter, or a buffer, used by a function."""

    def __init__(self, function: Callable[..., Tensor], tensor: Tensor, buffer: bool = False):
        super().__init__()
        self.function = function
        if buffer:
            self.register_buffer("own", tensor)
        else:
            self.own = nn.Parameter(tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.own)


def own(function: Callable[..., Tensor], *shape: int, buffer: bool = False) -> Callable[[], Own]:
    return lambda: Own(function, torch.rand(shape) + 0.5, buffer)


S1, S2, S3 = (6,), (4, 4), (4, 4, 4)
