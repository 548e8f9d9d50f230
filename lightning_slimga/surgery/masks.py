"""Masks as users give them, and which of them a surgery takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_slimga.arguments import SURGERY, check_fields
from lightning_slimga.graph.layers import Layer
from lightning_slimga.search.widths import fewest_channels
from lightning_slimga.surgery.masking import Mask


def as_bits(keep: Any) -> Mask:
    """A mask or a population of masks as a boolean array.

    Raises:
        TypeError: when it holds anything else than booleans.
    """
    if isinstance(keep, torch.Tensor):
        keep = keep.detach().cpu().numpy()
    bits = np.asarray(keep)
    if bits.dtype != np.bool_:
        raise TypeError(
            f"Expected argument `keep` to be a boolean mask (True = keep), but got dtype"
            f" {bits.dtype}. Compare scores with a threshold, or call `.bool()`."
        )
    return bits


def kept_per_layer(layers: Sequence[Layer], bits: Mask) -> npt.NDArray[np.int64]:
    """Kept channels: shape (..., layers) for masks of shape (..., channels)."""
    if not layers:
        return np.zeros((*bits.shape[:-1], 0), dtype=np.int64)
    starts = [layer.slice.start for layer in layers]
    return np.add.reduceat(bits.astype(np.int64), starts, axis=-1)


@dataclass(frozen=True)
class Widths:
    """How many channels a layer may keep: a multiple of one number and no fewer than another.

    All channels of a layer are always allowed; a layer with fewer than that stays whole.

    Attributes:
        min_channels: fewest channels.
        round_to: their number is a multiple of this.

    Raises:
        ValueError: when one of them is no whole number of at least 1.
    """

    min_channels: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        check_fields(self, ("min_channels", "round_to"), SURGERY)

    def fewest(self, channels: int) -> int:
        """The fewest channels that a layer of so many may keep."""
        return int(fewest_channels(np.array(channels), self.min_channels, self.round_to))

    def notes(self, layers: Sequence[Layer]) -> list[str]:
        """What follows for the layers of a network, in words; nothing where all is allowed."""
        notes = []
        if self.min_channels > 1:
            notes.append(f"every layer keeps at least {self.min_channels} channels, or all")
        if self.round_to > 1:
            notes.append(f"every layer keeps a multiple of {self.round_to} channels, or all")
        whole = [n.name for n in layers if self.fewest(n.num_channels) == n.num_channels]
        return notes + (
            [f"too small for that, so they stay whole: {', '.join(whole)}"] * bool(whole)
        )

    def check(self, layers: Sequence[Layer], mask: Mask) -> None:
        """Refuse a mask that leaves a layer a number of channels that it may not have.

        Raises:
            ValueError: naming the first such layer.
        """
        for layer in layers:
            channels, kept = layer.num_channels, int(mask[layer.slice].sum())
            if kept == 0:
                raise ValueError(
                    f"Expected argument `keep` to leave at least one channel of every layer, but"
                    f" it empties {layer.name!r} ({channels} channels)."
                )
            least = min(self.min_channels, channels)
            if kept < least:
                raise ValueError(
                    f"Expected argument `keep` to leave at least {least} of the {channels} channels"
                    f" of {layer.name!r} (`min_channels` is {self.min_channels}), but it leaves"
                    f" {kept}."
                )
            if kept % self.round_to and kept != channels:
                raise ValueError(
                    f"Expected argument `keep` to leave a multiple of {self.round_to} channels of"
                    f" {layer.name!r} (`round_to`), or all {channels}, but it leaves {kept}."
                )
