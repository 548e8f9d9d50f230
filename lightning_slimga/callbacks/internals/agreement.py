"""Several processes, one network: what the ranks share, and how they find out that they don't."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_slimga.callbacks.internals.strategy import broadcast, reduce_mean
from lightning_slimga.running.calls import Call
from lightning_slimga.running.recalibration import Average


def share_buffers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Give every rank rank 0's buffers, as DistributedDataParallel does before a forward pass.

    Since the last one the batch-norm statistics of the ranks have gone apart again.

    Args:
        trainer: the Trainer; every rank must make the call.
        pl_module: its LightningModule.
    """
    if trainer.world_size == 1:
        return
    ignored = getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ())
    buffers = {name: b for name, b in pl_module.named_buffers() if name not in ignored}
    sent = broadcast(trainer, {name: b.detach().cpu() for name, b in buffers.items()})
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(sent[name])


def share_calls(trainer: pl.Trainer, calls: list[Call]) -> list[Call]:
    """Rank 0's calls, for every rank.

    Batches differ between ranks, also in size. What is analysed and counted must not: costs decide
    which candidates are bred.

    Args:
        trainer: the Trainer; every rank must make the call.
        calls: this rank's calls.

    Returns:
        The calls of rank 0, with tensors on this rank's device.
    """
    if trainer.world_size == 1:
        return calls
    device = trainer.strategy.root_device
    sent: list[Call] = broadcast(trainer, [call.to("cpu") for call in calls])
    return [call.to(device) for call in sent]


def require_agreement(trainer: pl.Trainer, what: str, content: str) -> None:
    """Stop all ranks, or none.

    Args:
        trainer: the Trainer; every rank must make the call.
        what: what is compared, for the message.
        content: what must be the same everywhere.

    Raises:
        RuntimeError: on every rank, if the contents differ.
    """
    if trainer.world_size == 1:
        return
    digest = hashlib.sha256(content.encode()).digest()
    own = torch.tensor(list(digest), device=trainer.strategy.root_device)
    everyone = trainer.strategy.all_gather(own).view(-1, len(digest)).tolist()
    if any(other != everyone[0] for other in everyone):
        found = [f"rank {i}: {bytes(one).hex()[:8]}" for i, one in enumerate(everyone)]
        raise RuntimeError(
            f"The processes do not agree on {what} ({', '.join(found)}), so nothing was cut. They"
            " must all run the same code with the same arguments on the same weights."
        )


def equal_over_ranks(trainer: pl.Trainer, number: float) -> bool:
    """Whether all ranks have the same number; every rank must make the call."""
    return reduce_mean(trainer, float(number == broadcast(trainer, number))) == 1.0


def everywhere(trainer: pl.Trainer, holds: bool) -> bool:
    """Whether something holds on all ranks; every rank must make the call."""
    return reduce_mean(trainer, float(holds)) == 1.0


def union_over_ranks(trainer: pl.Trainer, numbers: Sequence[int]) -> list[int]:
    """All numbers that any rank has, the same on every rank.

    Args:
        trainer: the Trainer; every rank must make the call.
        numbers: this rank's, each in [0, 64].
    """
    if trainer.world_size == 1:
        return list(numbers)
    flags = torch.zeros(65, dtype=torch.int64, device=trainer.strategy.root_device)
    flags[list(numbers)] = 1
    total: Tensor = trainer.strategy.reduce(flags, reduce_op="sum")
    return torch.nonzero(total).flatten().tolist()


def average_over_ranks(trainer: pl.Trainer) -> Average | None:
    """A function that averages tensors over all ranks, or None where there is one process.

    Every rank must call it, with tensors of the same shapes. Tensors whose weights are 0
    everywhere stay as they are.
    """
    if trainer.world_size == 1:
        return None

    def average(tensors: Sequence[Tensor], weights: Sequence[int]) -> None:
        device = trainer.strategy.root_device
        parts = [
            tensor.detach().flatten().to(device, torch.float64) * weight
            for tensor, weight in zip(tensors, weights, strict=True)
        ]
        counts = torch.tensor(weights, device=device, dtype=torch.float64)
        total = trainer.strategy.reduce(torch.cat([counts, *parts]), reduce_op="sum")
        counts, sums = total[: len(counts)], total[len(counts) :]
        with torch.no_grad():
            sizes = [tensor.numel() for tensor in tensors]
            for tensor, count, part in zip(tensors, counts, sums.split(sizes), strict=True):
                if count:
                    tensor.copy_((part / count).view_as(tensor))

    return average
