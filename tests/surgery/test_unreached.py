"""What no call reaches is named; where it takes a reached module's place, it goes on working."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slimga import ChannelSurgery
from lightning_slimga.running import Call
from lightning_slimga.surgery.unreached import Unreached, raised_in
from tests.networks.checks import assert_exact, random_mask


class ByNumber(nn.Module):
    """Which of its parts runs is a number of the call; three of a kind, in a list."""

    def __init__(self, member: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 7))
        self.parts = nn.ModuleList(member() for _ in range(3))
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor, which: int = 0) -> Tensor:
        return self.out(self.parts[which](self.stem(x)))


class ByName(ByNumber):
    def __init__(self, member: Any) -> None:
        super().__init__(member)
        self.parts = nn.ModuleDict({"0": member(), "1": member(), "2": member()})

    def forward(self, x: Tensor, which: int = 0) -> Tensor:
        return self.out(self.parts[str(which)](self.stem(x)))


MEMBERS = {
    "experts": lambda: nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 7)),
    "norms": lambda: nn.BatchNorm1d(7),
    "adapters": lambda: nn.Linear(7, 7, bias=False),
}
X = torch.randn(4, 5, dtype=torch.float64)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("kind", [ByNumber, ByName])
def test_unreached_members_of_a_list_go_on_working(kind: Any, member: str) -> None:
    model = kind(MEMBERS[member]).double().eval()
    surgery = ChannelSurgery(model, (X, 1))
    assert surgery.unreached == (Unreached("parts.0"), Unreached("parts.2"))
    inner = ["parts.1.0"] if member == "experts" else []
    assert [layer.name for layer in surgery.layers] == ["stem.0", *inner, "out.1"]
    assert "no call has reached parts.0, parts.2, so it is left as it is" in str(surgery)
    keep = random_mask(surgery)
    for which in range(3):
        with torch.no_grad():
            with surgery.masked(keep):
                wanted = model(X, which)
            with surgery.shrunk(keep):
                assert torch.allclose(model(X, which), wanted)


@pytest.mark.parametrize("member", MEMBERS)
def test_all_goes_where_calls_reach_all(member: str) -> None:
    model = ByNumber(MEMBERS[member]).double().eval()
    surgery = ChannelSurgery(model, [Call("", (X, which)) for which in range(3)])
    assert surgery.unreached == ()
    assert not any("no call has reached" in note for note in surgery.notes)
    assert "stem.2" in [layer.name for layer in surgery.layers]
    assert_exact(surgery, (X, 2), random_mask(surgery))


class Around(nn.Module):
    """Beside what runs: a projection, a copy of the body, a token, something tied."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU())
        self.head = nn.Linear(7, 2)
        self.project = nn.Linear(7, 3)
        self.copy = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU())
        self.token = nn.Parameter(torch.zeros(1, 7))
        self.scale = nn.Parameter(torch.ones(1))
        self.tied = nn.Linear(7, 2)
        self.tied.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_what_could_read_channels_is_told_by_its_sizes() -> None:
    surgery = ChannelSurgery(Around().double(), X)
    assert set(surgery.unreached) == {
        Unreached("project", ("body.2",)),
        Unreached("copy"),
        Unreached("token", ("body.2",)),
        Unreached("tied.bias"),
    }
    (note,) = (note for note in surgery.notes if "reached" in note)
    assert "project (could read body.2), copy, token (could read body.2), tied.bias" in note


def test_who_has_raised() -> None:
    model = Around().double()
    for module, named in ((model.project, "project"), (model.copy, "copy"), (model.head, None)):
        with pytest.raises(RuntimeError) as caught:
            module(X[:, :4])
        assert raised_in(caught.value, ["project", "copy", "token"], model) == named
