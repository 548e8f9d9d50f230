"""The formula for latency: its solver, its fit, and that it never falls."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from lightning_slimga.cost.latency_model import LatencyModel, nonnegative_least_squares
from lightning_slimga.graph.cost import Cost, LinearSize, Polynomial, Term

FULL = np.array([8, 16])


@pytest.fixture
def cost() -> Cost:
    """Two layers in a chain: 27 inputs, 8 channels, 16 channels, 10 outputs; on 5 positions."""
    first, second = LinearSize(0, ((0, 1),)), LinearSize(0, ((1, 1),))
    terms = [
        Term("one", 5 * 27, (first,)),
        Term("two", 3 * 9, (first, second)),
        Term("two", 2 * 9, (first, second)),
        Term("head", 10, (second,)),
    ]
    return Cost(Polynomial(terms, 2), Polynomial(terms, 2))


def truth(counts: Any) -> Any:
    """Milliseconds: 0.3 for the calls, 2 for the second module, 0.5 for the channels of a layer."""
    kept = np.asarray(counts, dtype=float)
    return 0.3 + 2 * kept[:, 0] * kept[:, 1] / (8 * 16) + 0.5 * kept[:, 1] / 16


def draw(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(1, FULL + 1, (count, 2))


def best_of_all_active_sets(matrix: Any, target: Any) -> float:
    """Residual of the best solution, by trying every set of variables that are not 0."""
    best = float(np.linalg.norm(target))
    columns = range(matrix.shape[1])
    for size in columns:
        for chosen in itertools.combinations(columns, size + 1):
            part = matrix[:, chosen]
            x = np.linalg.lstsq(part, target, rcond=None)[0]
            if (x >= -1e-12).all():
                best = min(best, float(np.linalg.norm(part @ x - target)))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_the_solver_finds_what_trying_everything_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(2, 12), rng.integers(1, 7)
    matrix = rng.normal(size=(rows, columns)) if seed % 2 else rng.random((rows, columns))
    target = rng.normal(size=rows) + matrix.sum(axis=1) * (seed % 3)
    x = nonnegative_least_squares(matrix, target)
    assert (x >= 0).all()
    residual = np.linalg.norm(matrix @ x - target)
    assert residual == pytest.approx(best_of_all_active_sets(matrix, target), abs=1e-9)


@pytest.mark.parametrize(
    ("matrix", "target", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [2.0, -1.0], [2.0, 0.0]),
        ([[1.0, 0.0], [0.0, 1.0]], [-2.0, -1.0], [0.0, 0.0]),
        ([[1.0, 1.0], [0.0, 1.0]], [1.0, -1.0], [1.0, 0.0]),
        ([[2.0], [2.0]], [1.0, 3.0], [1.0]),
    ],
)
def test_the_solver_on_problems_solved_by_hand(matrix: Any, target: Any, expected: Any) -> None:
    found = nonnegative_least_squares(np.array(matrix), np.array(target))
    assert found == pytest.approx(expected)


def test_equal_columns_do_not_keep_the_solver_busy() -> None:
    column = np.array([1.0, 2.0, 3.0])
    found = nonnegative_least_squares(np.stack([column] * 5, axis=1), 2 * column)
    assert found.sum() == pytest.approx(2)


def test_a_latency_of_the_assumed_form_is_found_exactly(cost: Cost) -> None:
    counts, others = draw(30, 0), draw(50, 1)
    model = LatencyModel.fitted(cost, FULL, counts, truth(counts), float(truth(FULL[None])[0]))
    assert model(others) == pytest.approx(truth(others), rel=1e-6)
    assert model.error < 1e-6
    assert model.full_ms == pytest.approx(2.8)


def test_outliers_do_not_bend_the_fit_and_the_error_is_honest(cost: Cost) -> None:
    rng = np.random.default_rng(2)
    counts, others = draw(48, 3), draw(50, 4)
    measured = truth(counts) * np.exp(rng.normal(0, 0.05, 48))
    measured[::12] *= 8.0  # another program was running
    measured[5::12] /= 50.0  # another program was running beside the full network
    model = LatencyModel.fitted(cost, FULL, counts, measured, 2.8)
    assert np.abs(model(others) / truth(others) - 1).max() < 0.15
    assert 0.02 < model.error < 0.15


@pytest.mark.parametrize("seed", range(5))
def test_a_channel_more_is_never_faster(cost: Cost, seed: int) -> None:
    """Whatever was measured: repair relies on it."""
    counts = draw(20, seed)
    noise = np.random.default_rng(seed).uniform(0.1, 5.0, 20)
    model = LatencyModel.fitted(cost, FULL, counts, noise, 1.0)
    grid = np.array(list(itertools.product(range(1, 9), range(1, 17))))
    milliseconds = model(grid).reshape(8, 16)
    assert (np.diff(milliseconds, axis=0) >= 0).all()
    assert (np.diff(milliseconds, axis=1) >= 0).all()


def test_a_model_comes_back_from_plain_data_bit_for_bit(cost: Cost) -> None:
    counts = draw(20, 0)
    model = LatencyModel.fitted(cost, FULL, counts, truth(counts), 2.8)
    again = LatencyModel.restored(cost, FULL, json.loads(json.dumps(model.state_dict())))
    assert again(counts).tolist() == model(counts).tolist()
    assert (again.full_ms, again.error) == (model.full_ms, model.error)
