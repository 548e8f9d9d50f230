"""Properties of repair, checked against definitions and, where small, against all masks."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_slimga.search import SearchSpace
from tests.search.spaces import make_space


@st.composite
def cases(draw) -> tuple[SearchSpace, np.ndarray, np.ndarray]:
    """A space with reachable budgets, masks of all densities (empty ones too), and a factor."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    round_to = draw(st.sampled_from([1, 2, 8]))
    fewest = draw(st.integers(1, 4))
    limits = {"min_channels": fewest, "round_to": round_to}
    whole = make_space(sizes, 1.0, params=1.0, **limits)
    floor = [b.cost(whole.grid.lowest[None])[0] / b.limit for b in whole.budgets]
    shares = [low + draw(st.floats(0.001, 1.2)) * (1 - low) for low in floor]
    space = make_space(sizes, shares[0], params=shares[1], **limits)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = np.repeat(rng.random((5, len(sizes))), sizes, axis=1) * rng.choice([0, 1, 2], (5, 1))
    return space, rng.random((5, sum(sizes))) < density, rng.random(sum(sizes))


def legal_widths(size: int, fewest: int, round_to: int) -> set[int]:
    return {k for k in range(min(fewest, size), size) if k % round_to == 0} | {size}


def next_width(space: SearchSpace, layer: int, kept: int) -> int | None:
    size = int(space.grid.size[layer])
    return None if kept == size else min(kept + space.grid.step, size)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_repaired_masks_meet_every_budget_with_legal_widths(case):
    space, masks, factor = case
    counts = space.counts(space.repair(masks, factor))
    for budget in space.budgets:
        assert (budget.cost(counts) <= budget.limit).all()
    for layer, size in enumerate(space.grid.size):
        legal = legal_widths(int(size), int(space.grid.lowest[layer]), space.grid.step)
        assert set(counts[:, layer].tolist()) <= legal


@settings(max_examples=100, deadline=None)
@given(cases())
def test_no_layer_can_grow_by_one_step(case):
    space, masks, factor = case
    for row in space.counts(space.repair(masks, factor)):
        for layer, kept in enumerate(row):
            wider = next_width(space, layer, int(kept))
            if wider is None:
                continue
            grown = row.copy()
            grown[layer] = wider
            assert any(b.cost(grown[None])[0] > b.limit for b in space.budgets)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_repairing_twice_changes_nothing(case):
    space, masks, factor = case
    once = space.repair(masks, factor)
    assert np.array_equal(space.repair(once, factor), once)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_layer_only_loses_its_worst_or_gains_the_best(case):
    space, masks, factor = case
    for before, after in zip(masks, space.repair(masks, factor), strict=True):
        for start, size in zip(space.starts, space.grid.size, strict=True):
            part = slice(start, start + size)
            old, new, value = before[part], after[part], factor[part]
            lost, gained = old & ~new, new & ~old
            assert not (lost.any() and gained.any())
            if lost.any():
                assert value[lost].max() <= value[old & new].min(initial=np.inf)
            if gained.any():
                assert value[gained].min() >= value[~old & ~new].max(initial=-np.inf)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_feasible_mask_only_gains(case):
    space, masks, factor = case
    feasible = masks[space.feasible(masks)]
    assert (space.repair(feasible, factor) >= feasible).all()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_each_mask_is_repaired_on_its_own(case):
    space, masks, factor = case
    together = space.repair(masks, factor)
    alone = np.concatenate([space.repair(mask[None], factor) for mask in masks])
    assert np.array_equal(together, alone)


def test_proportions_of_the_candidate_survive():
    space = make_space((100, 100, 100), 0.25)
    widths = np.array([[80.0, 40.0, 20.0], [20.0, 40.0, 80.0], [50.0, 50.0, 50.0]])
    masks = np.ones((3, 300), dtype=bool)
    counts = space.counts(space.repair(masks, space.scores, widths=widths))
    assert np.abs(counts / counts[:, :1] / (widths / widths[:, :1]) - 1).max() < 0.25
    assert len({tuple(row) for row in counts.tolist()}) == 3


def test_wide_candidates_end_on_the_edge_that_brute_force_finds():
    space = make_space((4, 5, 3), 0.4)
    every = np.array(list(itertools.product(range(1, 5), range(1, 6), range(1, 4))))
    fit = {tuple(c) for c in every[space.fits(every)].tolist()}
    steps = np.eye(3, dtype=int)
    edge = {c for c in fit if all(tuple((np.array(c) + s).tolist()) not in fit for s in steps)}
    rng = np.random.default_rng(0)
    masks = rng.random((200, 12)) < rng.random((200, 1))
    reached = {tuple(c) for c in space.counts(space.repair(masks, rng.random(12))).tolist()}
    assert reached <= edge
    assert len(reached) > 3


def test_share_scales_the_limits_of_each_candidate():
    space = make_space((20, 20, 20), 0.8)
    share = np.array([1.0, 0.5, 0.25, 0.0])
    masks = np.ones((4, 60), dtype=bool)
    repaired = space.repair(masks, space.scores, share=share)
    cost, limit = space.costs(repaired)["macs"], space.budgets[0].limit
    assert (cost[:3] <= limit * share[:3]).all()
    assert (cost[:3] >= 0.9 * limit * share[:3]).all()
    assert space.counts(repaired)[3].tolist() == [1, 1, 1]
