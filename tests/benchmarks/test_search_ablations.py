from __future__ import annotations

import numpy as np
import pytest

from benchmarks.search_ablations import PARTS, WithoutRepair, flip_bits, mix_bits, without
from lightning_slimga.search import GeneticSearch, Limits
from tests.search.spaces import drive, hidden_metric, make_space

SMALL = {"population_size": 6, "limits": Limits(4)}


@pytest.mark.parametrize("part", PARTS)
def test_a_search_without_a_part_asks_for_feasible_masks_and_for_others(part: str) -> None:
    space, asked = make_space(share=0.4), []
    metric = hidden_metric(space)
    search = without(part, space, **SMALL)
    drive(search, lambda mask: asked.append(mask) or metric(mask))
    assert len(asked) == 24
    assert space.feasible(np.array(asked)).all()
    whole = GeneticSearch(space, **SMALL)
    drive(whole, metric)
    assert search.state_dict()["archive"] != whole.state_dict()["archive"]


def test_without_repair_masks_can_grow_further() -> None:
    space = make_space((20, 30, 40), 0.3)
    search = WithoutRepair(space, population_size=20, limits=Limits(4))
    drive(search, hidden_metric(space))
    masks = np.array([mask for mask, _ in search.elite(80)])
    assert (space.repair(masks, space.scores) != masks).any()


def test_bits_are_mixed_and_flipped_at_the_rate() -> None:
    space, rng = make_space(), np.random.default_rng(0)
    parents = np.repeat(np.array([[True], [False]]), space.num_channels, axis=1)
    assert 0.5 < mix_bits(parents, 1000, space, rng).mean() < 0.9  # the better one more often
    flipped = flip_bits(np.ones((1000, space.num_channels), bool), space, rng, rate=0.1)
    assert (~flipped).mean() == pytest.approx(0.1, abs=0.01)
