"""One process; two processes are in `tests/distributed`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.callbacks.internals import (
    average_over_ranks,
    require_agreement,
    share_buffers,
    share_calls,
    union_over_ranks,
)
from lightning_slimga.running.calls import Call


class Ranks:
    """Stands in for the strategy of rank 0 of two: the other rank's tensors are made up.

    Args:
        other: from what rank 0 sends to what rank 1 does.
    """

    root_device = torch.device("cpu")

    def __init__(self, other: Any) -> None:
        self.other = other

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor, self.other(tensor)])

    def reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        return tensor + self.other(tensor)


def trainer(world_size: int = 2, other: Any = None) -> Any:
    return SimpleNamespace(world_size=world_size, strategy=Ranks(other))


def test_one_process_has_nobody_to_agree_with() -> None:
    alone = trainer(1)
    calls = [Call("", (torch.ones(1),))]
    assert share_calls(alone, calls) is calls
    assert average_over_ranks(alone) is None
    require_agreement(alone, "anything", "a")
    assert union_over_ranks(alone, [15]) == [15]
    module = nn.BatchNorm1d(2)
    share_buffers(alone, module)
    assert module.running_mean.tolist() == [0.0, 0.0]


def test_agreement() -> None:
    require_agreement(trainer(other=lambda digest: digest), "the mask", "1010")
    with pytest.raises(RuntimeError, match=r"do not agree on the mask \(rank 0: \w{8}, rank 1: "):
        require_agreement(trainer(other=lambda digest: digest.flip(0)), "the mask", "1010")


def test_what_any_rank_has() -> None:
    ours = torch.zeros(65, dtype=torch.int64)
    ours[[2, 15]] = 1
    assert union_over_ranks(trainer(other=lambda _: ours), [15, 10]) == [2, 10, 15]
    assert union_over_ranks(trainer(other=torch.zeros_like), []) == []


def test_means_are_weighted_by_the_batches_of_each_rank() -> None:
    # The other rank has seen three batches of the first layer, with a mean of 6, and none of the
    # second one, which this rank has not seen either.
    sent = torch.tensor([3.0, 0.0, 18.0, 18.0, 0.0], dtype=torch.float64)
    average = average_over_ranks(trainer(other=lambda _: sent))
    first, second = torch.tensor([2.0, 10.0]), torch.tensor([5.0])
    average([first, second], [1, 0])
    assert first.tolist() == [5.0, 7.0]
    assert second.tolist() == [5.0]
