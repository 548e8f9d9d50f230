"""Which masks a surgery takes: shapes, types, and widths (`min_channels`, `round_to`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_slimga.graph.layers import Layer
from lightning_slimga.search import Budget, SearchSpace
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.masks import Widths
from tests.networks.checks import assert_exact


def layers_of(sizes: list[int]) -> list[Layer]:
    stops = np.cumsum(sizes).tolist()
    return [
        Layer(f"layer{i}", slice(stop - size, stop), (), None)
        for i, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 2)
    ).double()


def kept(first: int, second: int) -> torch.Tensor:
    """A mask for :func:`network` that keeps the first channels of each layer."""
    mask = torch.zeros(15, dtype=torch.bool)
    mask[:first] = mask[12 : 12 + second] = True
    return mask


@given(
    sizes=st.lists(st.integers(2, 20), min_size=1, max_size=4),
    min_channels=st.integers(1, 24),
    round_to=st.integers(1, 24),
    share=st.floats(0.05, 1.0),
    seed=st.integers(0, 99),
)
def test_the_search_gives_only_masks_that_the_surgery_accepts(
    sizes: list[int], min_channels: int, round_to: int, share: float, seed: int
) -> None:
    layers, widths = layers_of(sizes), Widths(min_channels, round_to)
    smallest = sum(widths.fewest(size) for size in sizes)
    budget = Budget("channels", max(smallest, share * sum(sizes)), lambda counts: counts.sum(1))
    rng = np.random.default_rng(seed)
    scores = rng.random(sum(sizes))
    space = SearchSpace(
        [(layer.name, layer.slice) for layer in layers], scores, [budget],
        min_channels=min_channels, round_to=round_to,
    )  # fmt: skip
    assert space.grid.lowest.tolist() == [widths.fewest(size) for size in sizes]
    for mask in space.repair(rng.random((5, sum(sizes))) < share, scores):
        widths.check(layers, mask)


@given(
    size=st.integers(2, 12),
    kept=st.integers(0, 12),
    min_channels=st.integers(1, 14),
    round_to=st.integers(1, 14),
)
def test_both_agree_about_every_width(
    size: int, kept: int, min_channels: int, round_to: int
) -> None:
    kept = min(kept, size)
    mask = np.arange(size) < kept
    space = SearchSpace(
        [("a", slice(0, size))], np.ones(size), [], min_channels=min_channels, round_to=round_to
    )
    try:
        Widths(min_channels, round_to).check(layers_of([size]), mask)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == bool(space.feasible(mask[None])[0])


@pytest.mark.parametrize(
    ("options", "mask", "match"),
    [
        ({"min_channels": 4}, kept(3, 3), r"at least 4 of the 12 channels of '0' .*leaves 3\."),
        ({"min_channels": 4}, kept(4, 2), r"at least 3 of the 3 channels of '2' .*is 4.* leaves 2"),
        ({"round_to": 4}, kept(6, 3), r"multiple of 4 channels of '0' \(`round_to`\), or all 12"),
        ({"round_to": 4}, kept(8, 2), r"multiple of 4 channels of '2' .*or all 3, but it leaves 2"),
        ({"round_to": 5, "min_channels": 6}, kept(5, 3), r"at least 6 of the 12 channels of '0'"),
    ],
)
def test_a_width_that_is_not_allowed_is_refused_by_name(
    options: dict[str, int], mask: torch.Tensor, match: str
) -> None:
    model = network()
    before = [p.shape for p in model.parameters()]
    surgery = ChannelSurgery(model, torch.randn(2, 4).double(), **options)
    uses: list[Callable[[torch.Tensor], object]] = [
        surgery.apply,
        surgery.plan,
        lambda m: surgery.shrunk(m).__enter__(),
        lambda m: surgery.masked(m).__enter__(),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=match):
            use(mask)
    assert [p.shape for p in model.parameters()] == before


@pytest.mark.parametrize("options", [{"round_to": 4}, {"min_channels": 5, "round_to": 4}])
def test_a_width_that_is_allowed_is_cut(options: dict[str, int]) -> None:
    x = torch.randn(2, 4).double()
    surgery = ChannelSurgery(network(), x, **options)
    assert_exact(surgery, x, kept(8, 3))
    surgery.apply(kept(8, 3))
    assert surgery.model[0].out_features == 8
    assert surgery.model[2].out_features == 3


@pytest.mark.parametrize("name", ["min_channels", "round_to"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` to be a whole number of at least 1, but got"):
        ChannelSurgery(network(), torch.randn(2, 4).double(), **{name: value})


def test_the_report_says_what_is_allowed() -> None:
    x = torch.randn(2, 4).double()
    surgery = ChannelSurgery(network(), x, min_channels=3, round_to=4)
    facts = surgery.report()
    assert (facts["min_channels"], facts["round_to"]) == (3, 4)
    assert [(row["channels"], row["fewest"]) for row in facts["layers"]] == [(12, 4), (3, 3)]
    text = str(surgery)
    assert "note: every layer keeps at least 3 channels, or all" in text
    assert "note: every layer keeps a multiple of 4 channels, or all" in text
    assert "note: too small for that, so they stay whole: 2" in text
    assert "note" not in str(ChannelSurgery(network(), x))
