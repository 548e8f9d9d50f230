"""A search saved and restored at any evaluation goes on as if it had not been interrupted."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
import torch

from benchmarks.search_ablations import without
from benchmarks.search_controls import HillClimbing, RandomSearch
from lightning_slimga.search import GeneticSearch, Limits, ParetoSearch
from tests.search.spaces import drive, hidden_metric, make_space

BUILD = {
    "genetic": lambda space: GeneticSearch(space, population_size=5, limits=Limits(4)),
    "no repair": lambda space: without("repair", space, population_size=5, limits=Limits(5)),
    "own operators": lambda space: without(
        "layer_operators", space, population_size=5, limits=Limits(3), mode="min"
    ),
    "random": lambda space: RandomSearch(space, population_size=5, limits=Limits(3)),
    "hill": lambda space: HillClimbing(space, limits=Limits(9)),
    "pareto": lambda space: ParetoSearch(space, population_size=5, limits=Limits(4)),
}


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def outcome(search):
    """The state, less the seconds, which no two runs share."""
    state = search.state_dict()
    del state["seconds"]
    for entry in state["history"]:
        del entry["seconds"]
    return json.dumps(state)  # text, because NaN differs from itself


def fails_sometimes(space):
    metric = hidden_metric(space)
    return lambda mask: float("nan") if mask.sum() % 7 == 0 else metric(mask)


@pytest.mark.parametrize("kind", BUILD)
def test_resumed_at_any_evaluation_equals_uninterrupted(kind):
    space = make_space((4, 6, 8), 0.4)
    metric = fails_sometimes(space)
    whole = BUILD[kind](space)
    drive(whole, metric)
    expected = outcome(whole)
    assert whole.evaluations > 5
    for stop in range(whole.evaluations + 1):
        first = BUILD[kind](space)
        drive(first, metric, most=stop)
        second = BUILD[kind](space)
        second.load_state_dict(through_a_file(first.state_dict()))
        assert np.array_equal(second.ask(), first.ask())
        drive(second, metric)
        assert outcome(second) == expected


def test_time_before_the_interruption_counts():
    space = make_space()
    first = GeneticSearch(space, population_size=5, limits=Limits(max_time=0.2))
    drive(first, hidden_metric(space), most=2)
    time.sleep(0.25)
    second = GeneticSearch(space, population_size=5, limits=Limits(max_time=0.2))
    second.load_state_dict(first.state_dict())
    assert second.seconds >= 0.25
    drive(second, hidden_metric(space))
    assert second.evaluations == 3
    assert second.stop_reason == "reached max_time=0.2 seconds"


def test_time_between_the_sessions_does_not_count():
    space = make_space()
    state = GeneticSearch(space, population_size=5).state_dict()
    time.sleep(0.2)
    search = GeneticSearch(space, population_size=5)
    search.load_state_dict(state)
    assert search.seconds < 0.2


def test_seeds_keep_their_names():
    space = make_space()
    first = GeneticSearch(space, population_size=5, limits=Limits(2))
    drive(first, hidden_metric(space))
    second = GeneticSearch(space, population_size=5, limits=Limits(2))
    second.load_state_dict(first.state_dict())
    assert second.seeds == first.seeds


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: RandomSearch(make_space()),
            "of a RandomSearch over 36 channels, but got one of a",
        ),
        (lambda: GeneticSearch(make_space((4, 4))), "over 8 channels, but got .* over 36 channels"),
    ],
)
def test_a_state_of_something_else_is_refused(other, message):
    with pytest.raises(ValueError, match=message):
        other().load_state_dict(GeneticSearch(make_space()).state_dict())
