"""Operators that a user registers are the ones that are called, whatever they do."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from deap import base, tools

from lightning_slimga.search import GeneticSearch, Limits, ParetoSearch, maximize, minimize
from tests.search.spaces import drive, hidden_metric, make_space

KINDS = [GeneticSearch, ParetoSearch]
SMALL = {"population_size": 6, "limits": Limits(5)}


def toolbox(**operators) -> base.Toolbox:
    """A toolbox with these operators."""
    made = base.Toolbox()
    for name, operator in operators.items():
        made.register(name, operator)
    return made


def first_half(parents, count, space, rng):
    """The first half from one parent, the second from another, as DEAP's one-point crossover."""
    first, second = parents[rng.integers(len(parents), size=(2, count))]
    return np.where(np.arange(space.num_channels) < space.num_channels // 2, first, second)


def flip(children, space, rng):
    return children ^ (rng.random(children.shape) < 0.1)


def test_children_are_what_mate_returns_and_mutate_makes_of_it():
    """Masks that repair leaves as they are come back from the search as they were made."""
    space = make_space((6, 8, 10), 0.5)
    wanted = space.repair(np.arange(24)[None] % 2 == 0, space.scores)
    other = space.repair(np.arange(24)[None] % 3 == 0, space.scores)
    mate = lambda parents, count, space, rng: np.repeat(wanted, count, axis=0)  # noqa: E731

    def mutate(children, space, rng):
        assert (children == wanted).all()
        return np.concatenate([children[:-1], other])

    search = GeneticSearch(space, toolbox=toolbox(mate=mate, mutate=mutate), **SMALL)
    masks = search.ask()
    search.tell(masks, list(map(hidden_metric(space), masks)))
    assert np.array_equal(search.ask(), np.concatenate([wanted, other]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("children", ["all", "none", "noise"])
def test_no_operator_breaks_the_budget(kind, children):
    space, asked = make_space(share=0.4, round_to=2), []

    def mutate(masks, space, rng):
        return {
            "all": np.ones_like(masks),
            "none": np.zeros_like(masks),
            "noise": rng.random(masks.shape) < rng.random((len(masks), 1)),
        }[children]

    metric = hidden_metric(space)
    search = kind(space, toolbox=toolbox(mutate=mutate), **SMALL)
    drive(search, lambda mask: asked.append(mask) or metric(mask))
    assert len(asked) > 6
    assert space.feasible(np.array(asked)).all()


def test_a_mating_that_empties_layers_is_mutated_like_any_other():
    def mate(parents, count, space, rng):
        return np.zeros((count, space.num_channels), dtype=bool)

    search = GeneticSearch(make_space(), toolbox=toolbox(mate=mate), **SMALL)
    drive(search, hidden_metric(make_space()))
    assert search.evaluations > 12


@pytest.mark.parametrize("kind", KINDS)
def test_parents_are_those_that_were_selected(kind):
    space, given = make_space(share=1.0), []

    def select(individuals, k):
        return tools.selWorst(individuals, k)

    def mate(parents, count, space, rng):
        given.append(parents)
        return first_half(parents, count, space, rng)

    told = {}
    metric = hidden_metric(space)
    search = kind(space, toolbox=toolbox(select=select, mate=mate), **SMALL)
    drive(search, lambda mask: told.setdefault(mask.tobytes(), metric(mask)), most=6)
    values = sorted(told[mask.tobytes()] for mask in given[0])
    assert values == sorted(told.values())[: len(values)]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_with_the_same_toolbox_it_goes_on_identically(kind):
    space = make_space()
    metric = hidden_metric(space)

    def make():
        return kind(space, toolbox=toolbox(mate=first_half, mutate=flip), **SMALL)

    whole = make()
    drive(whole, metric)
    for stop in (0, 7, 13):
        first, second = make(), make()
        drive(first, metric, most=stop)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        drive(second, metric)
        assert second.state_dict()["archive"] == whole.state_dict()["archive"]


@pytest.mark.parametrize(
    ("name", "operator", "message"),
    [
        ("mate", lambda p, n, s, r: p[:1], r"`mate` .* shape \(6, 36\), .* of shape \(1, 36\)"),
        ("mutate", lambda c, s, r: c.astype(int), "`mutate` .* boolean masks .* but got int64"),
    ],
)
def test_what_is_no_population_is_refused(name, operator, message):
    search = GeneticSearch(make_space(), toolbox=toolbox(**{name: operator}), **SMALL)
    with pytest.raises(ValueError, match=message):
        drive(search, hidden_metric(make_space()))


def test_the_toolbox_of_the_user_is_not_changed():
    mine = toolbox(mutate=flip)
    GeneticSearch(make_space(), toolbox=mine, **SMALL)
    assert set(vars(mine)) == {"clone", "map", "mutate"}


def test_maximize_is_ask_and_tell_whoever_evaluates():
    space = make_space()
    metric = hidden_metric(space)
    by_hand = GeneticSearch(space, seed=3, **SMALL)
    drive(by_hand, metric)
    serial = maximize(metric, space, seed=3, **SMALL)
    with ThreadPoolExecutor(3) as pool:
        threads = maximize(metric, space, seed=3, toolbox=toolbox(map=pool.map), **SMALL)
    for search in (serial, threads):
        assert search.state_dict()["archive"] == by_hand.state_dict()["archive"]
        assert search.stop_reason == "finished 5 generations"


def test_map_gets_a_generation_at_a_time():
    sizes = []

    def counted(function, masks):
        sizes.append(len(masks))
        return map(function, masks)

    maximize(hidden_metric(make_space()), make_space(), toolbox=toolbox(map=counted), **SMALL)
    assert sizes == [6] * 5


def test_minimize_is_maximize_of_the_negated_metric():
    space = make_space()
    metric = hidden_metric(space)
    low = minimize(lambda mask: -metric(mask), space, **SMALL)
    assert low.best[1] == -maximize(metric, space, **SMALL).best[1]
