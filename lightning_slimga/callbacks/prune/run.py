"""One pruning inside a fit, step by step: look, search, choose, cut, tell."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_slimga.callbacks.internals import (
    averaged_models,
    broadcast,
    own_state,
    rebuild_ddp,
    require_agreement,
    require_time,
    reset_monitors,
    union_over_ranks,
)
from lightning_slimga.callbacks.prune.announcer import Announcer
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from lightning_slimga.callbacks.prune.deferred_signals import DeferredSignals
from lightning_slimga.callbacks.prune.front_choice import FrontChoice
from lightning_slimga.callbacks.prune.latency_limit import LatencyLimit
from lightning_slimga.callbacks.prune.rounds import Round
from lightning_slimga.callbacks.prune.search_file import SearchFile, remove_search_file
from lightning_slimga.callbacks.prune.searches import genetic_search, no_metric
from lightning_slimga.callbacks.prune.settings import PruningResult, SearchSettings
from lightning_slimga.callbacks.prune.survey import Survey
from lightning_slimga.cost.budget import LATENCY
from lightning_slimga.cost.latency_model import LatencyModel
from lightning_slimga.search import Front, GeneticSearch, ParetoSearch, SearchSpace
from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from lightning_slimga.surgery.masking import Mask


class PruningRun:
    """Search and cut, between two batches of a fit.

    Args:
        trainer: the Trainer, inside ``fit``.
        pl_module: its LightningModule, full size.
        settings: the callback's arguments.
        this_round: which round of the fit this is, and what the network may cost after it.
        state: what `search_state` was when a search was interrupted, or None.
        signals: signals that wait; they are delivered between validation batches, or with several
            processes between candidates.

    Attributes:
        full_state: the module's ``state_dict`` before the search. Checkpoints that a signal handler
            writes while a candidate is swapped in hold this.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        settings: SearchSettings,
        this_round: Round,
        state: dict[str, Any] | None,
        signals: DeferredSignals,
    ) -> None:
        self.trainer = trainer
        self.module = pl_module
        self.settings = replace(settings, budget=this_round.budget)
        self.round = this_round
        self.result = PruningResult()
        self.full_state = own_state(pl_module)
        self._file = SearchFile(trainer, pl_module, f"{self.settings.searched} {this_round.dense}")
        self._state, self._signals = state, signals
        self._search: AskTellSearch | None = None
        self._choice: FrontChoice | None = None
        self._latency: LatencyLimit | None = None
        self._announcer = Announcer(trainer, self.settings, this_round)

    @property
    def search_state(self) -> dict[str, Any] | None:
        """Where the search stands, plain data; None before it has begun."""
        if self._search is None:
            return self._state
        return self._file.packed(self._state_of(self._search))

    def execute(self) -> PruningResult:
        """Run everything.

        The state of the search is written to disk after every generation, and when something ends
        the search before its time.

        Returns:
            What came out; the module is small now, unless its budget was met already.

        Raises:
            MisconfigurationException: when there is nothing to prune, no way to the budget, no
                such metric, or none that is finite; nothing was changed.
        """
        if torch.is_inference_mode_enabled():
            raise MisconfigurationException(
                "pruning inside `torch.inference_mode` would leave parameters that cannot train"
            )
        with self.result.timed("preparation"):
            space = self._prepare()
        if self._is_met_by(space):
            return self.result
        with self.result.timed("search"):
            mask = self._find(space)
        if mask is None:
            return self.result
        self.mask = mask
        self._leave_if_asked()
        with self.result.timed("surgery"):
            self._cut(self.mask)
        return self.result

    def _is_met_by(self, space: SearchSpace) -> bool:
        """Whether nothing is to be done; then it is said."""
        met, what = space.already_met, f"the budget {dict(self.settings.budget)}"
        if self._choice is not None:
            met, what = self._choice.already_met, f"`pick={self.settings.pick}`"
        if met:
            rank_zero_warn(f"The network meets {what} already: nothing was pruned.")
        return met

    def _find(self, space: SearchSpace) -> Mask | None:
        """Search, or read what an earlier search has found, and choose."""
        if self._choice is None or self.settings.front is None:
            search = self._make_search(space)
            self._run_search(search)
            return self._choose(search)
        return self._choose_from(self._choice, self._choice.saved())

    def _choose_from(self, choice: FrontChoice, front: Front) -> Mask | None:
        self.result.front = front
        self._announcer.keep(front)  # also if the point that is picked turns out not to be there
        mask = broadcast(self.trainer, choice.choose(front))
        if mask is not None and self._latency is not None and not self._latency.holds(mask):
            rank_zero_warn(
                "The network that was picked takes longer than the limit, as measured: the search"
                " predicts latency. The front holds faster ones."
            )
        return mask

    def report(self) -> None:
        """Show what surgery has done."""
        try:
            self._announcer.finish(self)
        except Exception as error:  # the network is small already: a report must not end the fit
            rank_zero_warn(f"the pruning report could not be written: {error!r}")

    def _prepare(self) -> SearchSpace:
        survey = Survey(self.trainer, self.module, self.settings)
        self.surgery, self.samples = survey.surgery, survey.samples
        self.result.fitness["dense"], self._noise = survey.dense, survey.noise
        self._candidates = CandidateEvaluation(
            self.trainer,
            self.module,
            survey.surgery,
            self.settings,
            evaluator=survey.evaluator,
            recalibration=survey.training,
            in_channels_last=survey.channels_last,
            result=self.result,
            between_batches=self._between_batches,
            between_finalists=self._leave_if_asked,
        )
        latency = self._calibrated_latency(survey.surgery)
        space = survey.space(self.round.dense, latency)
        if self.settings.has_front:
            self._choice = FrontChoice(
                self.trainer,
                self.module,
                self.settings,
                self.round.dense,
                space,
                self._candidates,
                lambda budget: survey.limits(budget, self.round.dense, latency),
                self.result,
            )
        return space

    def _calibrated_latency(self, surgery: ChannelSurgery) -> LatencyModel | None:
        self._found = self._file.read(self._state)
        limit = self.settings.budget.get(LATENCY)
        if limit is None:
            return None
        calibration = self._found and self._found.get("latency")
        self._latency = LatencyLimit(self.trainer, surgery, limit, calibration)
        return self._latency.model

    def _make_search(self, space: SearchSpace) -> AskTellSearch:
        search = (
            genetic_search(space, self.settings)
            if self._choice is None
            else self._choice.make_search()
        )
        if self._found is not None:
            search.load_state_dict(self._found)
        if isinstance(search, GeneticSearch):
            race = self._found and self._found.get("race")
            self._candidates.start_race(search.num_parents, race)
        self._search, search.noise = search, self._noise
        return search

    def _state_of(self, search: AskTellSearch) -> dict[str, Any]:
        return {
            **search.state_dict(),
            "race": self._candidates.race_state,
            "latency": self._latency and self._latency.state_dict(),
        }

    def _run_search(self, search: AskTellSearch) -> None:
        self._announcer.start(search)
        try:
            while not search.done:
                generation, mask = search.generation, search.ask()[0]
                search.tell([mask], [self._candidates.fitness(mask)])
                self._follow_rank_zero(search)
                self._announcer.evaluated(search)
                self._leave_if_asked()
                if search.generation > generation or search.done:
                    self._file.write(self._state_of(search))
        except BaseException:  # an interrupt of any kind: nothing that was evaluated is lost
            self._file.write(self._state_of(search))
            raise
        self.result.history = self._candidates.with_work(search.history)
        if isinstance(search, GeneticSearch):
            self.result.seeds = dict(search.seeds)
        self._announcer.ended(search, self._candidates.race_summary)

    def _leave_if_asked(self) -> None:
        """Here the network is whole, and may be left by all ranks together."""
        self._deliver_signals()
        require_time(self.trainer)

    def _deliver_signals(self) -> None:
        self._signals.adopt(union_over_ranks(self.trainer, self._signals.waiting))
        self._signals.deliver()
        if self.trainer.received_sigterm:  # Lightning does not look after a last batch
            raise SIGTERMException

    def _between_batches(self) -> None:
        if self.trainer.world_size == 1:  # others may be at another batch
            self._deliver_signals()

    def _follow_rank_zero(self, search: AskTellSearch) -> None:
        """Keep the ranks' searches in step: clocks differ, and `max_time` decides by the clock."""
        if self.trainer.world_size > 1:
            state = broadcast(self.trainer, search.state_dict())
            if not self.trainer.is_global_zero:
                search.load_state_dict(state)

    def _choose(self, search: AskTellSearch) -> Mask | None:
        """The best mask; on all validation data where the search saw a part of it."""
        if self._choice is not None and isinstance(search, ParetoSearch):
            return self._choose_from(self._choice, self._choice.found(search))
        mask, fitness = search.best
        elite = search.elite(5)
        finalists = [mask for mask, _ in elite]
        if self.settings.fitness_batches is not None:
            mask, fitness = self._candidates.best_of(finalists)
        if self._latency is not None and not self._latency.holds(mask):
            mask, fitness = self._candidates.best_of(self._latency.held(finalists, search.space))
        self.result.fitness["chosen"] = fitness
        if not math.isfinite(fitness):
            self._forget()
            raise no_metric(self.settings.monitor, search.evaluations, self.result.fitness)
        seen = (value for finalist, value in elite if (finalist == mask).all())
        self.result.fitness["search"] = next(seen, float("nan"))
        return broadcast(self.trainer, mask)

    def _forget(self) -> None:
        """A search that has learned nothing is not gone on with: a resumed fit searches anew."""
        self._search = self._state = None
        remove_search_file(self.trainer)

    def _cut(self, mask: Mask) -> None:
        """Surgery on everything that holds the network, then on with the fit."""
        trainer = self.trainer
        self._announcer.before(self)
        averaged = averaged_models(trainer)
        planned = self.surgery.plan(mask)
        require_agreement(trainer, "what to cut", planned.to_json())
        for model in averaged:
            planned.check(model)
        plan = self.surgery.apply(mask, optimizers=trainer.optimizers)
        for model in averaged:
            plan.apply(model)
        macs = [macs // self.samples for macs in plan.summary["macs"]]
        self.result.plan = replace(plan, summary={**plan.summary, "macs": macs})
        self._candidates.recalibrate()
        rebuild_ddp(trainer)
        if self.settings.reset_monitors:
            for path in reset_monitors(trainer):
                rank_zero_info(f"best checkpoint before pruning: {path}; from here on anew")
