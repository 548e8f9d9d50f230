"""Labels tied all at once are in the classes, frozen for the reasons, of ties made one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from lightning_slimga.graph.labels import NOTHING, LabelStore

Labels = npt.NDArray[np.int64]


class OneByOne:
    """The same store in the simplest way: a set of labels and a reason per class."""

    def __init__(self) -> None:
        self.classes: list[set[int]] = []
        self.reasons: list[str] = []
        self.frozen: dict[int, int] = {}  # number of the first reason, by label

    def fresh(self, size: int) -> None:
        start = len(self.classes)
        self.classes += [{label} for label in range(start, start + size)]

    def tie(self, a: Labels, b: Labels, why: str) -> None:
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            if NOTHING in (one, other):
                self.freeze([max(one, other)], why)
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            if NOTHING not in (one, other):
                joint = self.classes[one] | self.classes[other]
                known = [self.frozen[label] for label in joint if label in self.frozen]
                for label in joint:
                    self.classes[label] = joint
                    if known:
                        self.frozen[label] = min(known)

    def freeze(self, labels: list[int], why: str) -> None:
        for label in labels:
            if label == NOTHING:
                continue
            if why not in self.reasons:
                self.reasons.append(why)
            for member in self.classes[label]:
                number = self.reasons.index(why)
                self.frozen[member] = min(self.frozen.get(member, number), number)


def random_history(seed: int) -> tuple[LabelStore, OneByOne]:
    generator = np.random.default_rng(seed)
    store, simple = LabelStore(), OneByOne()
    for _ in range(generator.integers(3, 25)):
        size, why = int(generator.integers(1, 12)), f"reason {generator.integers(4)}"
        kind = generator.integers(5) if len(store) else 0
        if kind < 2:
            store.fresh(size)
            simple.fresh(size)
        elif kind < 4:
            lowest = generator.integers(NOTHING, 1)  # some histories meet nothing, some do not
            a, b = generator.integers(lowest, len(store), (2, size))
            store.tie(a, b, why)
            simple.tie(a, b, why)
        else:
            labels = generator.integers(len(store), size=size)
            store.freeze(labels, why)
            simple.freeze(labels.tolist(), why)
    return store, simple


@pytest.mark.parametrize("first", range(0, 300, 30))
def test_classes_and_reasons_are_those_of_ties_one_by_one(first: int) -> None:
    for seed in range(first, first + 30):
        assert_same_classes(*random_history(seed))


def assert_same_classes(store: LabelStore, simple: OneByOne) -> None:
    roots = store.roots()
    numbers = store.frozen_reasons(roots)
    for label, (root, number) in enumerate(zip(roots.tolist(), numbers.tolist(), strict=True)):
        assert set(np.flatnonzero(roots == root).tolist()) == simple.classes[label]
        reason = store.reasons[number] if number >= 0 else None
        known = simple.frozen.get(label)
        assert reason == (None if known is None else simple.reasons[known])


def test_rows_of_distinct_labels_are_tied_in_one_step() -> None:
    store = LabelStore()
    rows = np.stack([store.fresh(5) for _ in range(4)])
    assert store.tie_rows(rows) is not None
    assert (store.find(rows) == rows[0]).all()
    store.freeze(rows[3, :2], "stays")
    assert store.is_frozen(rows[0, :2])
    assert not store.is_frozen(rows[1])


def test_nothing_stays_nothing() -> None:
    store = LabelStore()
    store.fresh(3)
    assert (store.find(np.array([NOTHING, 2])) == [NOTHING, 2]).all()
