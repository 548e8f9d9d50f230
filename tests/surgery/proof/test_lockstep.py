"""Two passes of one network are paired op by op, whether or not a `reshape` has to copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.graph.trace import OpRecord
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.proof.lockstep import Pairing
from tests.networks.checks import Ops, assert_exact, random_mask, randomise


def _names(x: Tensor) -> list[str]:
    with Ops() as watch:
        y = torch.tanh(x.transpose(1, 2).reshape(len(x), -1))
        torch.sigmoid(y.t().contiguous()).exp()
    return watch.names


def _pairing(names: list[str]) -> Pairing:
    return Pairing([OpRecord(name, "", ("", "", 0), (), (), (), True) for name in names])


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 1, 4)), ((2, 1, 4), (2, 3, 4))])
def test_a_copy_more_or_less_parts_nobody(shapes: tuple[Any, Any]) -> None:
    recorded, other = (_names(torch.randn(shape)) for shape in shapes)
    assert recorded != other
    pairing = _pairing(recorded)
    found = [pairing.step(name) for name in other]
    paired = [(name, r.name) for name, r in zip(other, found, strict=True) if r is not None]
    views = {"aten::view", "aten::_unsafe_view"}
    assert all(a == b or {a, b} == views for a, b in paired)
    assert {"aten::tanh", "aten::sigmoid", "aten::exp"} <= {a for a, _ in paired}
    assert pairing.complete
    assert not pairing.parted
    assert pairing.upcoming is None


def test_another_op_parts_for_good() -> None:
    pairing = _pairing(["aten::add", "aten::relu", "aten::mul"])
    assert pairing.step("aten::add") is not None
    assert pairing.upcoming is not None
    assert pairing.step("aten::tanh") is None
    assert pairing.parted
    assert pairing.step("aten::relu") is None
    assert pairing.upcoming is None
    assert not pairing.complete


def test_more_ops_than_recorded_part_at_the_end() -> None:
    pairing = _pairing(["aten::add"])
    assert pairing.step("aten::add") is not None
    assert pairing.complete
    assert pairing.step("aten::add") is None
    assert pairing.parted


def test_a_size_in_the_code_is_blamed_on_its_line_beyond_copies_that_come_and_go() -> None:
    ran: list[int] = []

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 6)
            self.num_heads, self.head_dim = 2, 4

        def forward(self, x: Tensor) -> Tensor:
            ran.append(1)
            # The proof leaves one head of two: the second reshape needs no copy then.
            heads = self.a(x).reshape(len(x), self.num_heads, self.head_dim)
            hidden = self.b(heads.transpose(1, 2).reshape(len(x), -1))
            return x + self.c(hidden.view(len(x), 10))

    model = nn.Sequential(nn.Linear(6, 6), *(Block() for _ in range(8)), nn.Linear(6, 2)).double()
    randomise(model)
    x = torch.randn(3, 6, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert [layer.name for layer in surgery.layers] == ["0", *(f"{i}.a" for i in range(1, 9))]
    assert_exact(surgery, x, random_mask(surgery))
    assert len(ran) < 8 * 15  # not bisected
