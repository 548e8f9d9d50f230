"""The facts of one pruning run, as plain data that any writer can show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_slimga.text import amount, fraction

SCHEMA_VERSION = 1
"""Version of the layout of ``report.json``; grows when a key is renamed or removed."""


@dataclass(frozen=True)
class LayerRow:
    """One prunable layer before and after surgery.

    >>> row = LayerRow("stem", 24, 12, 1_000_000, 500_000, 240, 120)
    >>> row.channels_after / row.channels_before
    0.5

    Attributes:
        name: Name of the layer, as in ``ChannelSurgery.layers``.
        channels_before: Channels of the full-size layer.
        channels_after: Channels that were kept, at least 1.
        macs_before: Multiply-adds of the layer for one sample, full size.
        macs_after: Multiply-adds of the layer for one sample after surgery.
        params_before: Parameters of the layer, full size.
        params_after: Parameters of the layer after surgery.
    """

    name: str
    channels_before: int
    channels_after: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


@dataclass(frozen=True)
class FrontRows:
    """The networks that a search over metric and cost has left to choose from.

    >>> rows = FrontRows("macs", [(1e6, 0.71), (2e6, 0.78)], full=(4e6, 0.8), chosen=1)
    >>> rows.points[rows.chosen]
    (2000000.0, 0.78)

    Attributes:
        budget: Name of the cost, e.g. ``"macs"``.
        points: (cost, metric) of each network, cheapest first.
        full: (cost, metric) of the network before surgery.
        chosen: Index of the network that was cut out.
        floor: The worst metric that was allowed, or None.
    """

    budget: str
    points: list[tuple[float, float]]
    full: tuple[float, float]
    chosen: int
    floor: float | None = None


@dataclass(repr=False)
class PruningReport:
    """Everything that is told about one run of search and surgery; in a line where it is printed.

    >>> report = PruningReport(
    ...     monitor="val_acc",
    ...     mode="max",
    ...     budget={"macs": 0.5},
    ...     layers=[LayerRow("stem", 24, 12, 1_000_000, 500_000, 240, 120)],
    ...     macs=(1_000_000, 500_000),
    ...     params=(500, 260),
    ...     history=[],
    ...     seeds={"uniform_0": 0.71, "uniform_1": 0.75},
    ...     search_fitness=0.8262,
    ... )
    >>> print(report)
    budget macs 0.5 · 50.0% of MACs · 52.0% of parameters kept · val_acc 0.8262 after surgery
    >>> report.best_seeds()
    {'uniform, best of 2': 0.75}

    Attributes:
        monitor: Name of the metric that served as fitness.
        mode: ``"max"`` or ``"min"``.
        budget: What was asked for, e.g. ``{"macs": 0.5}``.
        layers: One row for each prunable layer.
        macs: Multiply-adds of the whole network for one sample, (before, after).
        params: Parameters of the whole network, (before, after).
        dense: Multiply-adds and parameters of the network before the first of several rounds, to
            which budgets refer; None where that is the network before.
        history: The generations in order; each a dict with at least ``generation``,
            ``evaluations`` (so far), ``best``, ``mean`` and ``seconds``.
        seeds: Fitness of the masks found without a search, by name.
        search_fitness: Fitness of the chosen mask, right after surgery.
        fitness_in_search: Its fitness on the part of the validation data that the search saw; None
            where that was everything.
        uncut: The metric of the network before surgery on the same data, as it was and with
            batch-norm statistics taken anew, as candidates are measured; or None.
        gamma_before: Scaling factors γ by layer name, before surgery.
        gamma_after: Scaling factors γ by layer name, of the channels that were kept.
        frozen: What could not be pruned: (layer or tensor name, reason).
        settings: Arguments of the run that are worth repeating, as plain values.
        latency_ms: Measured milliseconds of one forward pass, (before, after), or None.
        front: What there was to choose from, or None.
        seconds: Wall time by part of the run.
    """

    monitor: str
    mode: str
    budget: dict[str, float]
    layers: list[LayerRow]
    macs: tuple[int, int]
    params: tuple[int, int]
    history: list[dict[str, Any]]
    seeds: dict[str, float]
    search_fitness: float
    fitness_in_search: float | None = None
    uncut: tuple[float, float] | None = None
    gamma_before: dict[str, list[float]] = field(default_factory=dict)
    gamma_after: dict[str, list[float]] = field(default_factory=dict)
    frozen: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    latency_ms: tuple[float, float] | None = None
    dense: tuple[int, int] | None = None
    front: FrontRows | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a mode that would turn best into worst."""
        if self.mode not in ("max", "min"):
            raise ValueError(
                f"Expected argument `mode` to be 'max' or 'min', but got {self.mode!r}."
            )

    def __str__(self) -> str:
        asked = ", ".join(f"{name} {amount(value)}" for name, value in self.budget.items())
        macs, params = self.dense or (self.macs[0], self.params[0])
        return " · ".join(
            [
                f"budget {asked}",
                f"{fraction(macs, self.macs[1])} of MACs",
                f"{fraction(params, self.params[1])} of parameters kept",
                f"{self.monitor} {self.search_fitness:.4f} after surgery",
            ]
        )

    def __repr__(self) -> str:
        return f"<PruningReport: {self}>"

    def best_seeds(self) -> dict[str, float]:
        """Return the seeds by readable name; of numbered ones (``random_3``) the best alone."""
        groups: dict[str, list[float]] = {}
        for name, value in self.seeds.items():
            groups.setdefault(re.sub(r"_\d+$", "", name).replace("_", " "), []).append(value)
        best = max if self.mode == "max" else min
        return {
            name if len(values) == 1 else f"{name}, best of {len(values)}": best(
                (value for value in values if not math.isnan(value)), default=math.nan
            )
            for name, values in groups.items()
        }

    def to_plain(self) -> dict[str, Any]:
        """Return the report as strict JSON values; NaN and infinities become None."""
        plain = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return {name: jsonable(value) for name, value in plain.items()}


def jsonable(value: Any) -> Any:
    """Return `value` with every part turned into something strict JSON can hold.

    Args:
        value: Nested mappings and sequences of numbers, strings, booleans and None. Scalars of
            other libraries (anything with ``item()``) are unwrapped; the rest becomes its text.

    Returns:
        The same structure of dict, list, str, int, float, bool and None. Numbers that JSON
        cannot write (NaN, infinities) are None.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [jsonable(item) for item in value]
    if callable(getattr(value, "item", None)):
        return jsonable(value.item())
    return str(value)
