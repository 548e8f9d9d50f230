"""The front as plain data: networks that nobody beats in both metric and cost, for later choice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lightning_slimga.search.individual import SIGN, decode_mask, encode_mask
from lightning_slimga.search.widths import BoolArray

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class FrontPoint:
    """A network that no other told one beats in both metric and cost.

    Attributes:
        mask: True = keep, shape (C,).
        metric: as told.
        cost: in the unit of the space's first budget.

    >>> import numpy as np
    >>> FrontPoint(np.array([True, False]), metric=0.9, cost=1200.0)
    FrontPoint(metric=0.9, cost=1200.0)
    """

    mask: BoolArray = field(repr=False)
    metric: float
    cost: float


@dataclass(frozen=True, eq=False, repr=False)
class Front:
    """The points of a search, and what they belong to.

    Attributes:
        points: cheapest first, which is worst first.
        monitor: name of the metric.
        mode: "max" or "min", the direction of the metric.
        budget: name of the cost ("macs").
        layers: name and channels of each layer of the mask.
        full: the uncut network's metric and cost.
        weights: a hash of the weights that the metrics were measured with.

    >>> import numpy as np
    >>> kept = np.eye(3, dtype=bool)
    >>> points = [FrontPoint(kept[i], metric, 1.0 + i) for i, metric in enumerate((0.1, 0.8, 0.9))]
    >>> front = Front(tuple(points), "acc", "max", "macs", (("conv", 3),), full=(0.95, 4.0))
    >>> front
    Front(3 points, acc 0.1 to 0.9 at macs 1 to 3)
    >>> front.knee(), front.cheapest(floor=0.85)
    (1, 2)
    """

    points: tuple[FrontPoint, ...]
    monitor: str
    mode: str
    budget: str
    layers: tuple[tuple[str, int], ...]
    full: tuple[float, float]
    weights: str = ""

    SPARED: ClassVar[float] = 0.2
    SPAN: ClassVar[float] = 0.2

    def __repr__(self) -> str:
        ends = (self.points[0], self.points[-1]) if self.points else ()
        metric, cost = (" to ".join(f"{getattr(p, n):g}" for p in ends) for n in ("metric", "cost"))
        span = f", {self.monitor} {metric} at {self.budget} {cost}" if ends else ""
        return f"Front({len(self)} points{span})"

    def __len__(self) -> int:
        return len(self.points)

    def measured(self, metrics: Sequence[float]) -> Front:
        """Return the front of the same networks by other metrics, one for each point."""
        points = [
            replace(point, metric=metric)
            for point, metric in zip(self.points, metrics, strict=True)
        ]
        return replace(self, points=tuple(undominated(points, self.mode)))

    def knee(self) -> int:
        """Return the index of the point at which the metric begins to fall, toward lower costs.

        Of the points that have lost at most `SPARED` of what lies between the worst and the best
        metric of the front, it is the one farthest above the line between both ends, with both axes
        scaled to 0..1. (Farthest of all could be one that has lost half of the metric, where the
        front reaches down to networks that know nothing.) Of one or two points the best is taken.
        """
        if len(self) < 3:
            return len(self) - 1
        cost = np.array([point.cost for point in self.points])
        metric = SIGN[self.mode] * np.array([point.metric for point in self.points])
        cost = (cost - cost[0]) / (cost[-1] - cost[0])
        metric = (metric - metric[0]) / (metric[-1] - metric[0])
        return int(np.where(metric >= 1 - self.SPARED, metric - cost, -np.inf).argmax())

    def loss(self, index: int) -> float:
        """Return how much of what lies between the uncut network and the worst point is lost.

        Args:
            index: of a point.

        Returns:
            0 for the uncut network's metric or a better one, 1 for that of the worst point. 0 also
            where the worst point is less than `SPAN` of the uncut network's metric behind it, or
            that is not known: then no point is bad.
        """
        sign, full = SIGN[self.mode], self.full[0]
        span = sign * (full - self.points[0].metric)
        lost = sign * (full - self.points[index].metric)
        return max(0.0, lost / span) if span > self.SPAN * abs(full) else 0.0

    def cheapest(self, floor: float) -> int | None:
        """Return the index of the cheapest point that is at least as good as `floor`, or None."""
        sign = SIGN[self.mode]
        good = (i for i, point in enumerate(self.points) if sign * point.metric >= sign * floor)
        return next(good, None)

    def state_dict(self) -> dict[str, Any]:
        """Return plain data; the kept bits are hexadecimal, 4 channels a character."""
        return {
            "format": _FORMAT,
            "monitor": self.monitor,
            "mode": self.mode,
            "budget": self.budget,
            "full": {"metric": _finite(self.full[0]), "cost": self.full[1]},
            "weights": self.weights,
            "layers": [{"name": name, "channels": size} for name, size in self.layers],
            "points": [
                {"metric": p.metric, "cost": p.cost, "kept": encode_mask(p.mask)}
                for p in self.points
            ],
        }

    @classmethod
    def from_state_dict(cls, state: Any) -> Front:
        """Rebuild a front from :meth:`state_dict`, also after a round trip through JSON.

        Raises:
            ValueError: when the data is not a front of a format that this version reads.
        """
        found = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        if found != _FORMAT or "points" not in state:
            raise ValueError(
                f"Expected argument `front` to hold a front of format {_FORMAT}, but got {found!r}."
            )
        layers = tuple((str(row["name"]), int(row["channels"])) for row in state["layers"])
        num_channels = sum(size for _, size in layers)
        points = [
            FrontPoint(decode_mask(p["kept"], num_channels), float(p["metric"]), float(p["cost"]))
            for p in state["points"]
        ]
        metric = state["full"]["metric"]
        full = math.nan if metric is None else float(metric), float(state["full"]["cost"])
        text = {name: str(state[name]) for name in ("monitor", "mode", "budget", "weights")}
        return cls(points=tuple(points), layers=layers, full=full, **text)

    def save(self, path: str | Path) -> None:
        """Write the front as JSON."""
        text = json.dumps(self.state_dict(), indent=1, allow_nan=False)
        Path(path).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Front:
        """Read what :meth:`save` has written.

        Raises:
            ValueError: when there is no such file, or it does not hold a front.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Expected argument `front` to be the path of a `front.json` that an earlier run"
                f" has written, but got {str(path)!r}: {error}"
            ) from error
        return cls.from_state_dict(state)


def undominated(points: Sequence[FrontPoint], mode: str) -> list[FrontPoint]:
    """Return the points with a finite metric that no other beats, cheapest first, equals once."""
    sign = SIGN[mode]
    finite = [point for point in points if math.isfinite(point.metric)]
    front: list[FrontPoint] = []
    for point in sorted(finite, key=lambda point: (point.cost, -sign * point.metric)):
        if not front or sign * point.metric > sign * front[-1].metric:
            front.append(point)
    return front


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
