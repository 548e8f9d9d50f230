from __future__ import annotations

import numpy as np
import pytest

from lightning_slimga.search.screening import PromiseModel, proportions


def test_proportions_do_not_change_with_the_scale():
    widths = np.random.default_rng(0).uniform(1, 50, (5, 4))
    assert proportions(3 * widths) == pytest.approx(proportions(widths))
    assert proportions(widths).sum(axis=1) == pytest.approx(np.zeros(5))


def test_ranks_what_it_has_not_seen():
    rng = np.random.default_rng(0)
    inputs, unseen = rng.standard_normal((80, 5)), rng.standard_normal((200, 5))
    fitness = lambda x: -((x - 0.5) ** 2).sum(axis=1)  # noqa: E731
    model = PromiseModel(inputs, fitness(inputs) + 0.05 * rng.standard_normal(80))
    promise = model.promise(unseen)
    chosen = fitness(unseen)[np.argsort(-promise)[:20]].mean()
    assert chosen > np.quantile(fitness(unseen), 0.9)


def test_agrees_with_the_textbook_formula():
    rng = np.random.default_rng(1)
    inputs, fitness, new = rng.standard_normal((12, 2)), rng.standard_normal(12), np.ones((1, 2))
    fitness = np.clip(fitness, np.median(fitness) - 1, None)
    model = PromiseModel(inputs, fitness)

    def square(a, b):
        return ((a[:, None] - b) ** 2).sum(axis=-1)

    unit = np.median(square(inputs, inputs))
    targets = (fitness - fitness.mean()) / fitness.std()
    best = None
    for length in (1.0, 2.0, 4.0, 8.0):
        for noise in (1e-3, 1e-2, 5e-2):
            gram = np.exp(-square(inputs, inputs) / unit / 2 / length) + noise * np.eye(12)
            inverse = np.linalg.inv(gram)
            variance = targets @ inverse @ targets / 12
            likelihood = -6 * np.log(variance) - np.linalg.slogdet(gram)[1] / 2
            if best is None or likelihood > best[0]:
                row = np.exp(-square(new, inputs) / unit / 2 / length)[0]
                mean = row @ inverse @ targets
                deviation = np.sqrt(variance * (1 - row @ inverse @ row))
                best = (likelihood, fitness.mean() + fitness.std() * (mean + deviation))
    assert model.promise(new)[0] == pytest.approx(best[1], rel=1e-6)


def test_doubt_counts_in_favour():
    inputs = np.array([[0.0], [0.1], [1.0], [1.1]])
    model = PromiseModel(inputs, np.array([1.0, 1.1, 1.0, 1.1]))
    told, far = model.promise(np.array([[0.05], [30.0]]))
    assert far > told


def test_told_twice_at_the_same_point_is_no_problem():
    model = PromiseModel(np.zeros((6, 3)), np.arange(6.0))
    assert np.isfinite(model.promise(np.ones((2, 3)))).all()
