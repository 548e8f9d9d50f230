"""What a candidate is worth: cut for a while, batch norm anew, and through the validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slimga.callbacks.internals import FitnessEvaluator, average_over_ranks
from lightning_slimga.callbacks.internals.agreement import equal_over_ranks
from lightning_slimga.callbacks.internals.evaluation import StopRule
from lightning_slimga.callbacks.internals.quiet import traceless
from lightning_slimga.callbacks.prune.result import PruningResult
from lightning_slimga.callbacks.prune.survey import Survey
from lightning_slimga.running.model_state import kept_buffers
from lightning_slimga.running.recalibration import recalibrate
from lightning_slimga.running.torch_settings import untuned
from lightning_slimga.search.racing import Race
from lightning_slimga.surgery.channels_last import channels_last
from lightning_slimga.surgery.masking import Mask, swapped_in
from lightning_slimga.surgery.unreached import raised_in


class CandidateEvaluation:
    """Measures masks by the fit's own validation; the network is as before after each.

    Args:
        trainer: the Trainer, inside ``fit``.
        survey: the full-size module, how it is run, and what cuts it.
        result: gets the seconds.
        interrupted: asked between the batches of a validation; True gives it up.
        after_interruption: called then, with the network and all else as it was before; may raise.
            The candidate is measured anew afterwards.
        between_finalists: called by all ranks before each mask of `on_everything`; may raise.

    Attributes:
        race: what stops candidates early; None before `start_race`.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        survey: Survey,
        result: PruningResult,
        *,
        interrupted: Callable[[], bool] = lambda: False,
        after_interruption: Callable[[], None] = lambda: None,
        between_finalists: Callable[[], None] = lambda: None,
    ) -> None:
        self._trainer, self._survey, self._result = trainer, survey, result
        self._module, self._settings = survey.module, survey.settings
        anew = survey.settings.recalibration_batches > 0
        self._calls = survey.training if anew else []
        self._average = average_over_ranks(trainer) if anew else None
        self._interrupted, self._after_interruption = interrupted, after_interruption
        self._between_finalists = between_finalists
        self._warned_nan = False
        self.race: Race | None = None

    @property
    def race_state(self) -> dict[str, Any] | None:
        """What the race remembers, plain data."""
        return None if self.race is None else self.race.state_dict()

    @property
    def race_summary(self) -> str:
        """What racing has saved, to be added to a sentence; empty if nothing."""
        if self.race is None or not self.race.saved:
            return ""
        return f"; racing saved {self.race.saved:.0%} of the validation batches"

    def with_work(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a search's history, with the part of the forward work that racing left over."""
        return history if self.race is None else self.race.with_work(history)

    def start_race(self, parents: int, state: dict[str, Any] | None = None) -> None:
        """From now on `fitness` stops candidates that are clearly behind, if that is wanted.

        Args:
            parents: how many of the best candidates a search breeds from.
            state: of the race of an interrupted search.
        """
        if not self._settings.racing:
            return
        batches = self._survey.evaluator.num_batches
        equal = equal_over_ranks(self._trainer, batches)
        race = Race(self._settings.mode, parents, batches)
        if not self._survey.evaluator.random_order:
            race.off = "the order of the validation data is not known to be random"
        elif not equal:
            race.off = "the processes have different numbers of validation batches"
        if state is not None:
            race.load_state_dict(state)
        self.race = race

    def fitness(self, mask: Mask) -> float:
        """Return the metric of a candidate, on the data that the search sees.

        Of a candidate that the race has stopped: what it is estimated to be, worse than that of
        any candidate that may become a parent.
        """
        race, evaluator = self.race, self._survey.evaluator
        if race is None:
            return self._measure(mask, evaluator)
        was_off = race.off
        runner = race.enter()
        while (metric := self._tried(mask, evaluator, runner.stops)) is None:
            self._after_interruption()
            runner = race.enter()
        value = runner.finish(metric)
        if race.off != was_off:
            rank_zero_info(f"no candidate is stopped early: {race.off}")
        return value

    def on_everything(self, masks: Sequence[Mask]) -> list[float]:
        """Return the metrics of masks on all validation data."""
        values = []
        for mask in masks:
            self._between_finalists()
            values.append(self._measure(mask, self._everything))
        return values

    @cached_property
    def uncut(self) -> float:
        """The metric of the network as it is, measured as candidates are in the search."""
        return self._measure_uncut(self._survey.evaluator)

    @property
    def uncut_on_everything(self) -> float:
        """The same on all validation data, to which a candidate's may be compared."""
        seen = self._everything is self._survey.evaluator
        return self.uncut if seen else self._measure_uncut(self._everything)

    def _measure_uncut(self, evaluator: FitnessEvaluator) -> float:
        if not self._calls:  # as it is, nothing is taken anew
            return self._survey.dense if evaluator is self._survey.evaluator else evaluator()
        return self._measure(np.ones(self._survey.surgery.num_channels, dtype=bool), evaluator)

    @cached_property
    def _everything(self) -> FitnessEvaluator:
        """The validation on all of its data, which is read once."""
        if self._settings.fitness_batches is None:
            return self._survey.evaluator
        return FitnessEvaluator(self._trainer, self._module, self._settings.monitor)

    def best_of(self, finalists: Sequence[Mask]) -> tuple[Mask, float]:
        """Return the finalist that is best on all validation data, and its metric."""
        values = self.on_everything(finalists)
        order = self._settings.sign * np.array(values)
        best = int(np.argmax(np.where(np.isnan(order), -np.inf, order)))
        return finalists[best], values[best]

    def recalibrate(self) -> None:
        """Give the module, as it is, its batch-norm statistics for good."""
        context = self._trainer.precision_plugin.forward_context()
        with traceless(self._trainer, buffers=False, together=True), context:
            self._recalibrate()

    @contextmanager
    def _shrunk(self, mask: Mask) -> Iterator[None]:
        """The network and the copies that follow it, cut for a while."""
        surgery, followers = self._survey.surgery, self._survey.followers
        with ExitStack() as stack:
            stack.enter_context(surgery.shrunk(mask))
            plan = surgery.plan(mask) if followers else None
            for one in followers:
                assert plan is not None
                stack.enter_context(kept_buffers(one.module))
                stack.enter_context(swapped_in(plan.within(one.student), one.module))
            yield

    def _recalibrate(self) -> None:
        recalibrate(self._module, self._calls, self._average, only=self._survey.moved)

    def _measure(self, mask: Mask, evaluator: FitnessEvaluator) -> float:
        while (metric := self._tried(mask, evaluator)) is None:
            self._after_interruption()
        return metric

    def _tried(
        self, mask: Mask, evaluator: FitnessEvaluator, stop_when: StopRule | None = None
    ) -> float | None:
        """The metric of a mask; None where the evaluation was interrupted."""

        def stop(done: int, running: Callable[[], float]) -> bool:
            if self._interrupted():
                raise _InterruptedError
            return stop_when is not None and stop_when(done, running)

        context = self._trainer.precision_plugin.forward_context()
        forward = self._result.timed("forward")
        layout = channels_last(self._module, self._survey.channels_last)
        value = None
        with (
            self._explained(),
            suppress(_InterruptedError),
            traceless(self._trainer, together=True),
            self._shrunk(mask),
            layout,
            forward,
            untuned(),
            context,
        ):
            self._recalibrate()  # until the buffers come back
            value = evaluator(stop_when=stop)
        if value is not None and np.isnan(value) and not self._warned_nan:
            self._warned_nan = True
            rank_zero_warn(
                f"`{self._settings.monitor}` of a candidate is NaN; it counts as the worst."
            )
        return value

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say so when it is a module that no call has reached that fails."""
        try:
            yield
        except Exception as error:
            names = [one.name for one in self._survey.surgery.unreached]
            name = raised_in(error, names, self._module)
            if name is None:
                raise
            raise RuntimeError(
                f"A candidate cannot be run: {name}, which no call had reached before the search,"
                f" raised {type(error).__name__}: {error}. Show such a call by"
                " `GeneticPruneCallback(example_calls=...)`, or name in `ignore` what it reads."
            ) from error


class _InterruptedError(Exception):
    """A validation is given up, because something waits that must see the fit as it is."""
