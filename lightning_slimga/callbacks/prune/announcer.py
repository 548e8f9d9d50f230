"""What people see of a pruning run: live lines, scalars, the table, the report folder."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slimga.cost.latency import measure_latency
from lightning_slimga.report import FrontRows, LayerRow, PruningReport, format_table, write_report
from lightning_slimga.report.progress import SearchProgress
from lightning_slimga.running.calls import narrowed
from lightning_slimga.search import Front
from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.stopping import NO_SIGNAL

if TYPE_CHECKING:
    from lightning_slimga.callbacks.prune.rounds import Round
    from lightning_slimga.callbacks.prune.run import PruningRun
    from lightning_slimga.callbacks.prune.settings import SearchSettings

_SECONDS_BETWEEN_LINES = 10.0


class Announcer:
    """Tells of one run through the Trainer's progress bar, loggers and log folder.

    Args:
        trainer: the Trainer.
        settings: the run's settings.
        this_round: which round of the fit it is.
    """

    def __init__(self, trainer: pl.Trainer, settings: SearchSettings, this_round: Round) -> None:
        self.trainer = trainer
        self.settings = settings
        self.round = this_round
        # All ranks have to ask for the folder together, and one of them may fail in `finish`.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._folder /= f"pruning_report{this_round.suffix}"
        self.report: PruningReport | None = None
        self._last_line = 0.0
        self._generations_told = 0
        self._gamma: dict[str, list[float]] = {}
        self._latency: float | None = None

    def start(self, search: AskTellSearch) -> None:
        """The search begins, or goes on."""
        planned = self.settings.max_evaluations
        if planned is None:
            planned = self.settings.population_size * self.settings.generations
        self._progress = SearchProgress(
            self.settings.generations,
            planned,
            max_time=self.settings.max_time,
            evaluations=search.evaluations,
        )
        self._generations_told = len(search.history)

    def evaluated(self, search: AskTellSearch) -> None:
        """A candidate has been judged: a line now and then, and one for each generation."""
        for entry in search.history[self._generations_told :]:
            self._log_scalars(entry)
        complete = len(search.history) > self._generations_told
        self._generations_told = len(search.history)
        if complete or time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            mean = search.history[-1]["mean"] if search.history else float("nan")
            generation = len(search.history) + (not complete)
            best = search.best[1] if search.evaluations else float("nan")
            self._say(self._progress.line(generation, search.evaluations, best, mean))

    def ended(self, search: AskTellSearch, and_more: str) -> None:
        """The search has stopped: why. It may have learned nothing, which is worth a warning."""
        reason = str(search.stop_reason)
        if reason.startswith(NO_SIGNAL):
            equal = math.isfinite(search.best[1])
            rank_zero_warn(f"search ended: {reason}" + " The first of equals is taken." * equal)
        else:
            rank_zero_info(f"search ended: {reason}{and_more}")

    @property
    def _writes(self) -> bool:
        return self.settings.report and bool(self.trainer.is_global_zero)

    def keep(self, front: Front) -> None:
        """Save what there is to choose from beside the report."""
        if not self._writes:
            return
        path = self._folder / "front.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            front.save(path)
            rank_zero_info(f"front of {len(front)} networks: {path}")
        except OSError as error:
            rank_zero_warn(f"the front could not be saved to {path}: {error}")

    def before(self, run: PruningRun) -> None:
        """Remember what surgery is about to change."""
        self._gamma = _gamma(run, np.ones(run.surgery.num_channels, dtype=bool))
        self._latency = _latency(run)

    def finish(self, run: PruningRun) -> None:
        """The network is small: the table, and the report folder."""
        assert run.result.plan is not None
        before, after = self._latency, _latency(run)
        self.report = PruningReport(
            monitor=self.settings.monitor,
            mode=self.settings.mode,
            budget={name: float(limit) for name, limit in self.settings.budget.items()},
            layers=_layer_rows(run),
            macs=tuple(run.result.plan.summary["macs"]),
            params=tuple(run.result.plan.summary["params"]),
            history=run.result.history,
            seeds=run.result.seeds,
            search_fitness=run.result.fitness["chosen"],
            fitness_in_search=_fitness_in_search(run),
            gamma_before=self._gamma,
            gamma_after=_gamma_after(run, self._gamma),
            frozen=[
                (name, why)
                for name, dim, _, why in run.surgery.frozen
                if run.surgery.writes(name, dim)
            ],
            settings=self.settings.told,
            latency_ms=None if before is None or after is None else (before, after),
            dense=_dense(self.round),
            front=_front_rows(run),
            seconds=dict(run.result.timings),
        )
        self._say(format_table(self.report))
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if any(cls.__name__ == "ModelSummary" for cls in type(callback).__mro__):
                callback.on_fit_start(self.trainer, run.module)  # which prints it
        if self._writes:
            where = write_report(self._folder, self.report)
            rank_zero_info(f"pruning report: {where}")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        bar = self.trainer.progress_bar_callback
        if bar is None or not getattr(bar, "is_enabled", True):
            rank_zero_info(text)
        elif self.trainer.is_global_zero:
            bar.print(text)

    def _log_scalars(self, entry: dict[str, Any]) -> None:
        names = ("best", "mean", "std", "evaluations")
        values = {f"search/{n}": float(entry[n]) for n in names if n in entry}
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.round.generations + int(entry["generation"]))


def _fitness_in_search(run: PruningRun) -> float | None:
    """What the search saw of the chosen network, where that was a part of the data."""
    return None if run.settings.fitness_batches is None else run.result.fitness["search"]


def _dense(this_round: Round) -> tuple[int, int] | None:
    if not this_round.dense:
        return None
    return int(this_round.dense["macs"]), int(this_round.dense["params"])


def _front_rows(run: PruningRun) -> FrontRows | None:
    front = run.result.front
    if front is None:
        return None
    return FrontRows(
        front.budget,
        points=[(point.cost, point.metric) for point in front.points],
        full=(front.full[1], front.full[0]),
        chosen=run.result.chosen,
        floor=run.result.floor,
    )


def _latency(run: PruningRun) -> float | None:
    """Milliseconds for one sample; None for a network that does not run on one."""
    try:
        return measure_latency(run.module, [narrowed(call, 1)[0] for call in run.surgery.calls])
    except Exception:  # whatever a network raises that is made for larger batches
        return None


def _gamma(run: PruningRun, keep: Any) -> dict[str, list[float]]:
    scores = run.surgery.scores()
    return {
        layer.name: scores[layer.slice][keep[layer.slice]].tolist()
        for layer in run.surgery.layers
        if layer.gamma
    }


def _gamma_after(run: PruningRun, before: dict[str, list[float]]) -> dict[str, list[float]]:
    """γ of the channels that were kept; values are those of the moment of surgery."""
    return {
        layer.name: [
            g for g, kept in zip(before[layer.name], run.mask[layer.slice], strict=True) if kept
        ]
        for layer in run.surgery.layers
        if layer.gamma
    }


def _layer_rows(run: PruningRun) -> list[LayerRow]:
    """One row per layer; MACs and parameters are those of the modules that write its channels."""
    surgery = run.surgery
    counts = [surgery.counts(np.ones_like(run.mask))[None], surgery.counts(run.mask)[None]]
    macs = [surgery.cost.macs.by_module(c) for c in counts]
    params = [surgery.cost.params.by_module(c) for c in counts]
    rows = []
    for i, layer in enumerate(surgery.layers):
        writers = {
            name.rpartition(".")[0] for name, dim in layer.tensors if surgery.writes(name, dim)
        }
        rows.append(
            LayerRow(
                layer.name,
                int(counts[0][0, i]),
                int(counts[1][0, i]),
                *(sum(m.get(w, 0) for w in writers) // run.samples for m in macs),
                *(sum(p.get(w, 0) for w in writers) for p in params),
            )
        )
    return rows
