"""What people see of a pruning run: live lines, scalars, the table, the report folder."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_slimga.callbacks.prune.report_folder import attach, report_folder
from lightning_slimga.callbacks.prune.result import PruningResult
from lightning_slimga.callbacks.prune.rounds import Round
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.cost.latency import measure_latency
from lightning_slimga.report import FrontRows, LayerRow, PruningReport, format_table, write_report
from lightning_slimga.report.progress import SearchProgress
from lightning_slimga.running.calls import narrowed
from lightning_slimga.search import Front
from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.search.stopping import NO_SIGNAL
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.masking import Mask

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class BeforeSurgery:
    """What the report compares with, and surgery changes.

    Attributes:
        gamma: scaling factors γ of each layer that has some.
        latency: milliseconds for one sample; None for a network that does not run on one.
    """

    gamma: dict[str, list[float]]
    latency: float | None

    @classmethod
    def of(cls, module: nn.Module, surgery: ChannelSurgery) -> BeforeSurgery:
        """Look at a network of full size."""
        scores = surgery.scores()
        gamma = {
            layer.name: scores[layer.slice].tolist() for layer in surgery.layers if layer.gamma
        }
        return cls(gamma, _latency(module, surgery))


class Announcer:
    """Tells of one run through the Trainer's progress bar, loggers and log folder.

    Args:
        trainer: the Trainer; every rank must make an announcer.
        settings: the run's settings.
        this_round: which round of the fit it is.
    """

    def __init__(self, trainer: pl.Trainer, settings: SearchSettings, this_round: Round) -> None:
        self._trainer, self._settings, self._round = trainer, settings, this_round
        # All ranks have to ask for the folder together, and one of them may fail in `finish`.
        self._folder = report_folder(trainer, f"pruning_report{this_round.suffix}")
        self._writes = settings.report and bool(trainer.is_global_zero)

    def say(self, text: str) -> None:
        """Tell something, without disturbing the line of the progress bar."""
        _say(self._trainer, text)

    def live(self, search: AskTellSearch) -> LiveSearch:
        """The search begins, or goes on."""
        return LiveSearch(self._trainer, self._settings, search, self._round.generations)

    def keep(self, front: Front) -> None:
        """Save what there is to choose from beside the report."""
        if not self._writes:
            return
        path = self._folder / "front.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            front.save(path)
            self.say(f"front of {len(front)} networks: {path}")
        except OSError as error:
            rank_zero_warn(f"the front could not be saved to {path}: {error}")

    def finish(
        self,
        module: pl.LightningModule,
        surgery: ChannelSurgery,
        samples: int,
        mask: Mask,
        result: PruningResult,
        before: BeforeSurgery,
    ) -> None:
        """The network is small: the table, and the report folder.

        Args:
            module: the small network.
            surgery: what has cut it.
            samples: samples in the example inputs of `surgery`.
            mask: what was kept.
            result: what the run leaves behind; it has a plan.
            before: what was seen before.
        """
        assert result.plan is not None
        settings, after = self._settings, _latency(module, surgery)
        seen = None if settings.fitness_batches is None else result.fitness["search"]
        dense = self._round.dense
        report = PruningReport(
            monitor=settings.monitor,
            mode=settings.mode,
            budget={name: float(limit) for name, limit in settings.budget.items()},
            layers=measured_rows(surgery, samples, mask),
            macs=tuple(result.plan.summary["macs"]),
            params=tuple(result.plan.summary["params"]),
            history=result.history,
            seeds=result.seeds,
            search_fitness=result.fitness["chosen"],
            fitness_in_search=seen,
            uncut=(result.fitness["dense"], result.fitness["recalibrated"]),
            gamma_before=before.gamma,
            gamma_after=_kept(before.gamma, surgery, mask),
            frozen=[
                *((n, why) for n, dim, _, why in surgery.frozen if surgery.writes(n, dim)),
                *((one.name, "no call has reached it") for one in surgery.unreached),
            ],
            settings=settings.told,
            latency_ms=None if before.latency is None or after is None else (before.latency, after),
            dense=(int(dense["macs"]), int(dense["params"])) if dense else None,
            front=_front_rows(result),
            seconds=dict(result.timings),
        )
        self.say(format_table(report))
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]
            if any(cls.__name__ == "ModelSummary" for cls in type(callback).__mro__):
                callback.on_fit_start(self._trainer, module)  # which prints it
        if self._writes:
            self.say(f"pruning report: {write_report(self._folder, report)}")
            attach(self._trainer, self._folder)


class LiveSearch:
    """A running search in lines, now and then, and in scalars, for each generation.

    Args:
        trainer: the Trainer.
        settings: the run's settings.
        search: the search, which begins now or goes on.
        generations: generations of earlier rounds.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        settings: SearchSettings,
        search: AskTellSearch,
        generations: int,
    ) -> None:
        self._trainer, self._search, self._earlier = trainer, search, generations
        planned = settings.max_evaluations or settings.population_size * settings.generations
        self._progress = SearchProgress(
            settings.generations,
            planned,
            max_time=settings.max_time,
            evaluations=search.evaluations,
        )
        self._told = len(search.history)
        self._last_line = -math.inf

    def evaluated(self) -> None:
        """A candidate has been judged: a line now and then, and one for each generation."""
        search, told = self._search, self._told
        self._told = len(search.history)
        for entry in search.history[told:]:
            self._log_scalars(entry)
        complete = self._told > told
        if complete or time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            mean = search.history[-1]["mean"] if search.history else math.nan
            best = search.best[1] if search.evaluations else math.nan
            generation = self._told + (not complete)
            _say(self._trainer, self._progress.line(generation, search.evaluations, best, mean))
            self._last_line = time.monotonic()

    def ended(self, and_more: str) -> None:
        """The search has stopped: why. It may have learned nothing, which is worth a warning.

        Args:
            and_more: added to the sentence.
        """
        reason = str(self._search.stop_reason)
        if reason.startswith(NO_SIGNAL):
            equal = math.isfinite(self._search.best[1])
            rank_zero_warn(f"search ended: {reason}" + " The first of equals is taken." * equal)
        else:
            _say(self._trainer, f"search ended: {reason}{and_more}")

    def _log_scalars(self, entry: dict[str, Any]) -> None:
        names = ("best", "mean", "std", "evaluations")
        values = {f"search/{n}": float(entry[n]) for n in names if n in entry}
        for logger in self._trainer.loggers:
            try:
                logger.log_metrics(values, step=self._earlier + int(entry["generation"]))
            except Exception as error:  # a service that is away must not end a search
                rank_zero_warn(f"{type(logger).__name__} did not take a generation: {error!r}")


def measured_rows(surgery: ChannelSurgery, samples: int, mask: Mask) -> list[LayerRow]:
    """One row per layer; MACs and parameters are those of the modules that write its channels.

    Args:
        surgery: of the network.
        samples: samples in the example inputs of `surgery`.
        mask: what was kept, shape (C,).
    """
    masks = np.ones_like(mask), mask
    counts = [surgery.counts(keep).tolist() for keep in masks]
    costs = [surgery.costs_by_layer(keep) for keep in masks]
    return [
        LayerRow(
            layer.name,
            *channels,
            *(macs // samples for macs, _ in of_layer),
            *(params for _, params in of_layer),
        )
        for layer, channels, of_layer in zip(
            surgery.layers, zip(*counts, strict=True), zip(*costs, strict=True), strict=True
        )
    ]


def _say(trainer: pl.Trainer, text: str) -> None:
    """Print past the progress bar; what goes wrong with printing must not end a fit."""
    bar = trainer.progress_bar_callback
    try:
        if bar is None or not getattr(bar, "is_enabled", True):
            rank_zero_info(text)
        elif trainer.is_global_zero:
            bar.print(text)
    except Exception:  # a notebook's output has its own ways to fail, endless recursion among them
        with suppress(Exception):
            rank_zero_info(text)


def _latency(module: nn.Module, surgery: ChannelSurgery) -> float | None:
    calls = [narrowed(call, 1)[0] for call in surgery.calls if call.counted]
    try:
        return measure_latency(module, calls)
    except Exception:  # whatever a network raises that is made for larger batches
        return None


def _kept(
    gamma: dict[str, list[float]], surgery: ChannelSurgery, mask: Mask
) -> dict[str, list[float]]:
    """γ of the channels that were kept; values are those of the moment of surgery."""
    slices = {layer.name: layer.slice for layer in surgery.layers}
    return {name: np.asarray(values)[mask[slices[name]]].tolist() for name, values in gamma.items()}


def _front_rows(result: PruningResult) -> FrontRows | None:
    front = result.front
    if front is None:
        return None
    return FrontRows(
        front.budget,
        points=[(point.cost, point.metric) for point in front.points],
        full=(front.full[1], front.full[0]),
        chosen=result.chosen,
        floor=result.floor,
    )
