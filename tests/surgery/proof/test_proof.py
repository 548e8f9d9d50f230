"""What no trace can see is found by running the small network, and frozen with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.proof.comparison import compare_outputs
from tests.networks.checks import (
    assert_exact,
    assert_macs_exact,
    assert_same,
    random_mask,
    snapshot,
    train_a_step,
)


class Block(nn.Module):
    """Three convolutions; ``trick`` runs between the first and the second."""

    def __init__(self, trick: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1)
        self.trick, self.scale = trick, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.trick(self, torch.sigmoid(self.a(x)))
        return self.c(torch.relu(self.b(a)))


def _hard_view(_: nn.Module, a: Tensor) -> Tensor:
    return a.view(2, 6, 16).view(2, 6, 4, 4)


def _hard_slice(_: nn.Module, a: Tensor) -> Tensor:
    return torch.cat([a[:, 4:], a[:, :4]], 1)


def _hard_zeros(_: nn.Module, a: Tensor) -> Tensor:
    return a + torch.zeros(6, 1, 1, dtype=a.dtype)


def _hard_number(_: nn.Module, a: Tensor) -> Tensor:
    return a * (a.shape[1] / 6)


def _hidden_by_zero(block: nn.Module, a: Tensor) -> Tensor:
    return a * (1 + block.scale * a.shape[1])


def _hard_in_training(block: nn.Module, a: Tensor) -> Tensor:
    return a.view(2, 6, 4, 4) if block.training else a


def _hard_branch(_: nn.Module, a: Tensor) -> Tensor:
    if a.shape[1] != 6:
        raise ValueError("six channels, please")
    return a


def _sorted(_: nn.Module, a: Tensor) -> Tensor:
    return a.sort(dim=1).values


def _through_numpy(_: nn.Module, a: Tensor) -> Tensor:
    return a + torch.from_numpy(a.detach().numpy().mean(1, keepdims=True))


TRICKS = {
    "view": (_hard_view, "a size is written into the code|small network fails"),
    "slice": (_hard_slice, "a size is written into the code"),
    "zeros": (_hard_zeros, "small network fails|a size is written"),
    "number": (_hard_number, r"output \[0\] differs"),
    "hidden by zero": (_hidden_by_zero, r"output \[0\] differs"),
    "training": (_hard_in_training, "small network fails|a size is written"),
    "branch": (_hard_branch, "six channels, please"),
    "sort": (_sorted, "entries along this dimension are mixed"),
    "numpy": (_through_numpy, r"output \[0\] differs"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_what_the_trace_cannot_see_freezes_that_layer_alone(trick: str) -> None:
    function, reason = TRICKS[trick]
    model = Block(function).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    before = snapshot(model)
    surgery = ChannelSurgery(model, x)
    assert_same(before, snapshot(model))
    assert [layer.name for layer in surgery.layers] == ["b"]
    reasons = {why for name, dim, _, why in surgery.frozen if (name, dim) == ("a.weight", 0)}
    assert len(reasons) == 1
    assert re.search(reason, reasons.pop())
    keep = random_mask(surgery)
    assert_exact(surgery, x, keep)
    assert_macs_exact(surgery, x, keep)
    surgery.apply(keep)
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.1))


class Repeated(nn.Module):
    """A hard-coded view in every block: one failure must settle them all."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Piece() for _ in range(depth))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        COUNTER.append(1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Piece(nn.Module):
    """6 -> 8 (hard-coded) -> 10 -> 6."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x)).view(-1, 2, 4).flatten(1)
        return self.c(torch.relu(self.b(hidden)))


COUNTER: list[int] = []


def test_the_same_line_of_code_is_frozen_everywhere_at_once() -> None:
    model, x = Repeated(12), torch.randn(3, 6)
    COUNTER.clear()
    surgery = ChannelSurgery(model, x)
    assert len(COUNTER) <= 12
    assert [layer.name for layer in surgery.layers if ".b" in layer.name] == [
        f"blocks.{i}.b" for i in range(12)
    ]
    assert not any(".a" in layer.name for layer in surgery.layers)


def test_a_proof_that_holds_costs_a_handful_of_forward_passes() -> None:
    model = Repeated(0)
    COUNTER.clear()
    ChannelSurgery(model, torch.randn(3, 6))
    assert len(COUNTER) <= 5


@pytest.mark.parametrize(("between", "trains"), [(nn.Identity(), False), (nn.Dropout(0.5), True)])
def test_a_surgery_runs_in_training_mode_where_that_does_something_else(
    between: nn.Module, trains: bool
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), between, nn.Linear(8, 2))
    surgery = ChannelSurgery(model, torch.randn(3, 6))
    ran: list[bool] = []
    model[3].register_forward_pre_hook(lambda module, _: ran.append(module.training))
    surgery.apply(random_mask(surgery))
    assert False in ran
    assert (True in ran) == trains


def test_control_flow_that_depends_on_values_does_not_blame_anyone() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.sigmoid(self.a(x))
            if float(x.sum()) > 1e9:
                hidden = hidden * 2
            for _ in range(int(x.abs().sum() * 0) + 2):
                hidden = torch.sigmoid(self.b(hidden))
            return self.c(hidden)

    model, x = Early().double(), torch.randn(3, 4, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert surgery.num_channels == 6
    assert_exact(surgery, x, random_mask(surgery))


def test_comparing_outputs() -> None:
    a = torch.randn(3, 4)
    assert compare_outputs([a], [a.clone()]) is None
    assert compare_outputs([a], [a * (1 + 1e-6)]) is None
    assert "differs by" in str(compare_outputs([{"x": a}], [{"x": a + 1}]))
    assert "[0.x]" in str(compare_outputs([{"x": a}], [{"x": a + 1}]))
    assert "another shape" in str(compare_outputs([a], [a[:2]]))
    assert "another number of tensors" in str(compare_outputs([a], [a, a]))
    nan = a.clone()
    nan[0, 0] = float("nan")
    assert compare_outputs([nan], [nan.clone()]) is None
    assert "differs by inf" in str(compare_outputs([a], [nan]))
    double = a.double()
    assert compare_outputs([double], [double * (1 + 1e-12)]) is None
    assert compare_outputs([double], [double * (1 + 1e-6)]) is not None


class Detector(nn.Module):
    """Candidates by score; every score is there twice, equal but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mix = nn.Linear(3, 64), nn.Linear(64, 64)
        self.score = nn.Linear(64, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.sigmoid(self.mix(torch.sigmoid(self.body(x))))
        scores = self.score(features)
        again = (features * 0.7) @ (self.score.weight / 0.7).t()
        order = torch.cat([scores, again]).flatten().argsort(descending=True)
        return scores, order.double()


def test_decisions_by_the_last_digit_blame_no_layer() -> None:
    model, x = Detector().double(), torch.randn(200, 3, dtype=torch.float64)
    surgery = ChannelSurgery(model, x)
    assert [layer.num_channels for layer in surgery.layers] == [64, 64]
    keep = random_mask(surgery)
    with surgery.masked(keep):
        wanted = model(x)
    with surgery.shrunk(keep):
        found = model(x)
    assert not torch.equal(wanted[1], found[1]), "this test is about an order that changes"
    surgery.apply(keep)
    torch.testing.assert_close(model(x)[0], wanted[0])


class Deep(nn.Module):
    """Many layers, one of which scales by its own width."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        COUNTER.append(1)
        for number, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            if number == 20:
                x = x * (x.shape[1] / 6)
        return x


def test_a_wrong_value_is_found_where_it_arises() -> None:
    model, x = Deep(32).double(), torch.randn(3, 6, dtype=torch.float64)
    COUNTER.clear()
    surgery = ChannelSurgery(model, x)
    assert len(COUNTER) <= 20
    assert len(surgery.layers) == 30
    assert "layers.20" not in {layer.name for layer in surgery.layers}


class Finder(nn.Module):
    """Returns points only where a score is low enough; in the full network it never is."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.score, self.points = nn.Linear(3, 30), nn.Linear(30, 1), nn.Linear(30, 5)
        nn.init.ones_(self.score.weight)
        self.threshold = 0.0

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = torch.sigmoid(self.body(x))
        score, points = self.score(hidden).mean(), self.points(hidden)
        return [score, points if float(score.detach()) < self.threshold else points.new_zeros(0)]


def test_a_way_that_only_the_masked_network_takes_is_traced_as_well() -> None:
    model, x = Finder().double(), torch.randn(4, 3, dtype=torch.float64)
    model.threshold = 0.9 * float(model(x)[0].detach())
    surgery = ChannelSurgery(model, x)
    assert [layer.name for layer in surgery.layers] == ["body"]
    surgery.apply(random_mask(surgery))
    assert model(x)[1].shape == (4, 5)


class Writes(nn.Module):
    """Writes a number of channels that stands in the code; a narrow network has all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.last = (
            nn.Conv2d(3, 12, 1),
            nn.Conv2d(12, 12, 1),
            nn.Conv2d(12, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x + self.mix(x).sigmoid()
        y = y.clone()
        y[:, :6] = x[:, :6]
        return self.last(y)


def test_a_number_that_narrow_networks_do_not_reach_is_seen() -> None:
    model, x = Writes(), torch.randn(2, 3, 4, 4)
    surgery = ChannelSurgery(model, x)
    keep = torch.ones(surgery.num_channels, dtype=torch.bool)
    for layer in surgery.layers:
        keep[layer.slice.start + 1 : layer.slice.stop] = False
    assert_exact(surgery, x, keep)
    assert_exact(surgery, x, random_mask(surgery))


class Copies(nn.Module):
    """The same, where it makes no difference: the channels are there already."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x.clone()
        y[:, :6] = x[:, :6]
        return self.last(y)


def test_what_a_narrow_network_hides_a_wide_one_shows() -> None:
    model, x = Copies(), torch.randn(2, 3, 4, 4)
    surgery = ChannelSurgery(model, x)
    for share in (0.1, 0.5, 0.9):
        keep = random_mask(surgery, share=share)
        assert_exact(surgery, x, keep)
    surgery.apply(keep)
    train_a_step(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
