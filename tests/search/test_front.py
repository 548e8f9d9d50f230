from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lightning_slimga.search import Front, FrontPoint
from lightning_slimga.search.front import undominated


def points(*values: tuple[float, float]) -> tuple[FrontPoint, ...]:
    """Points of these metrics and costs, each with a mask of its own over 5 channels."""
    rng = np.random.default_rng(0)
    return tuple(FrontPoint(rng.random(5) < 0.5, metric, cost) for metric, cost in values)


def make(*values: tuple[float, float], mode: str = "max") -> Front:
    return Front(
        points=points(*values),
        monitor="val_acc",
        mode=mode,
        budget="macs",
        layers=(("a", 2), ("b", 3)),
        full=(0.9, 1000.0),
        weights="abc",
    )


FRONT = ((0.2, 100.0), (0.7, 300.0), (0.75, 500.0), (0.8, 900.0))


@pytest.mark.parametrize("mode", ["max", "min"])
def test_undominated_is_what_a_comparison_of_all_pairs_leaves(mode):
    rng = np.random.default_rng(3)
    sign = 1 if mode == "max" else -1
    drawn = [(float(m), float(c)) for m, c in rng.integers(0, 12, (60, 2))]
    drawn += [(math.nan, 0.0), (sign * -math.inf, 0.0)]
    expected = {
        (m, c)
        for m, c in drawn[:60]
        if not any(sign * a >= sign * m and b <= c and (a, b) != (m, c) for a, b in drawn[:60])
    }
    left = undominated(points(*drawn), mode)
    assert {(point.metric, point.cost) for point in left} == expected
    assert len(left) == len(expected)
    assert [point.cost for point in left] == sorted(point.cost for point in left)


STEEP = tuple((0.1 + 0.05 * i, 100.0 + 10 * i) for i in range(10))  # networks that know little
FLAT = ((0.80, 250.0), (0.81, 500.0), (0.82, 750.0), (0.825, 900.0))


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        (STEEP + FLAT, 10),  # the first after the fall
        (((0.1, 100.0), (0.542, 200.0), (0.78, 700.0), (0.825, 900.0)), 2),  # not that halfway down
        (((0.1, 100.0), (0.8, 150.0), (0.81, 600.0), (0.82, 900.0)), 1),
        (((0.60, 100.0), (0.70, 300.0), (0.80, 500.0), (0.90, 700.0)), 3),  # no knee: nothing lost
        (((0.820, 100.0), (0.823, 400.0), (0.825, 900.0)), 2),
    ],
)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_knee_is_where_the_metric_begins_to_fall(front, expected, mode):
    sign = 1 if mode == "max" else -1
    values = [(sign * metric, cost) for metric, cost in front]
    assert make(*values, mode=mode).knee() == expected


def test_the_loss_of_a_point_is_seen_between_the_uncut_network_and_the_worst():
    front = make((0.1, 100.0), (0.45, 200.0), (0.55, 300.0), (0.95, 500.0))
    assert [front.loss(i) for i in range(4)] == pytest.approx([1.0, 0.5625, 0.4375, 0.0])
    worse = make((0.5, 1.0), (0.3, 2.0), mode="min")
    assert [worse.loss(i) for i in range(2)] == [0.0, 0.0]  # better than the uncut one, 0.9
    close = make((0.88, 1.0), (0.89, 2.0))
    assert [close.loss(i) for i in range(2)] == [0.0, 0.0]  # of so little nothing is lost


def test_knee_and_floor():
    front = make(*FRONT)
    assert front.knee() == 1
    assert front.cheapest(0.72) == 2
    assert front.cheapest(0.75) == 2
    assert front.cheapest(0.81) is None
    assert make((3.0, 1.0), (2.0, 2.0), (1.0, 3.0), mode="min").cheapest(2.5) == 1
    assert make((0.2, 1.0), (0.3, 2.0)).knee() == 1


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_the_knee_is_where_the_curve_bends(mode, sign):
    shares = np.linspace(0.1, 1.0, 10)
    bent = [(sign * (min(share / 0.4, 1.0) + 0.1 * share), share) for share in shares]
    assert make(*bent, mode=mode).knee() == 3


def test_it_is_shown_in_a_line():
    assert repr(make(*FRONT)) == "Front(4 points, val_acc 0.2 to 0.8 at macs 100 to 900)"
    assert repr(make()) == "Front(0 points)"


def test_measured_anew_drops_what_has_become_dominated():
    front = make(*FRONT).measured([0.1, 0.8, 0.7, math.nan])
    assert [(p.metric, p.cost) for p in front.points] == [(0.1, 100.0), (0.8, 300.0)]
    assert np.array_equal(front.points[1].mask, points(*FRONT)[1].mask)
    assert front.layers == make().layers


def test_a_file_gives_the_front_back(tmp_path):
    front, path = make(*FRONT), tmp_path / "front.json"
    front.save(path)
    again = Front.load(path)
    assert again.state_dict() == front.state_dict()
    for one, other in zip(again.points, front.points, strict=True):
        assert np.array_equal(one.mask, other.mask)
    plain = json.loads(path.read_text())
    assert plain["layers"] == [{"name": "a", "channels": 2}, {"name": "b", "channels": 3}]
    bits = f"{int(plain['points'][0]['kept'], 16):08b}"[:5]
    assert [bit == "1" for bit in bits] == front.points[0].mask.tolist()


def test_a_metric_that_is_not_known_survives_the_file(tmp_path):
    front = Front((), "m", "min", "params", (), (math.nan, 3.0))
    front.save(tmp_path / "front.json")
    assert math.isnan(Front.load(tmp_path / "front.json").full[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "`front` to be the path of a `front.json` .*No such file"),
        ("{", "`front` to be the path of a `front.json` .*Expecting"),
        ("[1]", "`front` to hold a front of format 1, but got 'list'"),
        ('{"format": 9}', "`front` to hold a front of format 1, but got 9"),
        ('{"format": 1}', "`front` to hold a front of format 1"),
    ],
)
def test_what_is_no_front_is_refused(tmp_path, content, message):
    path = tmp_path / "front.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Front.load(path)
