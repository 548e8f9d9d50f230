"""Which γ belong to one channel, as the channel labels of the network tell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery


def coupled_channels(surgery: ChannelSurgery, gammas: Sequence[nn.Parameter]) -> Tensor:
    """Number the channels that the given γ scale.

    Args:
        surgery: The analysis of the network as it is now.
        gammas: Scaling factors of that network, 1-D, each once.

    Returns:
        Shape `(sum of sizes,)`, int64, on the device of the γ: for each γ the number of its
        channel, counted from 0. γ that the network ties together have the same number; one that
        belongs to no removable channel has a number of its own.
    """
    names = {id(parameter): name for name, parameter in surgery.model.named_parameters()}
    numbers: dict[int, int] = {}
    channels: list[int] = []
    for gamma in gammas:
        name = names.get(id(gamma))
        bits = [-1] * gamma.numel() if name is None else surgery.channels_of(name, 0).tolist()
        for bit in bits:
            key = bit if bit >= 0 else -1 - len(channels)  # unlike any bit, and any other such key
            channels.append(numbers.setdefault(key, len(numbers)))
    device = gammas[0].device if gammas else torch.device("cpu")
    return torch.tensor(channels, dtype=torch.int64, device=device)
