"""One pruning inside a fit, step by step: look, search, choose, cut, tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from lightning_slimga.callbacks.internals.quiet import traceless
from lightning_slimga.callbacks.prune.announcer import Announcer, BeforeSurgery
from lightning_slimga.callbacks.prune.candidates import CandidateEvaluation
from lightning_slimga.callbacks.prune.copies import Copies
from lightning_slimga.callbacks.prune.deferred_signals import DeferredSignals
from lightning_slimga.callbacks.prune.front_choice import FrontChoice
from lightning_slimga.callbacks.prune.latency_limit import LatencyLimit
from lightning_slimga.callbacks.prune.result import PruningResult
from lightning_slimga.callbacks.prune.rounds import Round
from lightning_slimga.callbacks.prune.search_file import SearchFile, remove_search_file
from lightning_slimga.callbacks.prune.settings import SearchSettings
from lightning_slimga.callbacks.prune.survey import Survey
from lightning_slimga.cost.budget import LATENCY
from lightning_slimga.search import Front, GeneticSearch, ParetoSearch, SearchSpace
from lightning_slimga.search.ask_tell import AskTellSearch
from lightning_slimga.surgery.masking import Mask


@dataclass(frozen=True)
class Ready:
    """All that a search needs.

    Attributes:
        survey: the network, and what is known of it.
        candidates: measures masks.
        latency: holds a limit in milliseconds; None without one.
        space: what is searched.
        choice: chooses from a front; None where the best network is wanted.
        interrupted: where an interrupted search of this network stands, or None.
    """

    survey: Survey
    candidates: CandidateEvaluation
    latency: LatencyLimit | None
    space: SearchSpace
    choice: FrontChoice | None
    interrupted: dict[str, Any] | None


@dataclass(frozen=True)
class Cut:
    """A network that has become small.

    Attributes:
        mask: what was kept.
        survey: the network as it was.
        before: what the report compares with.
    """

    mask: Mask
    survey: Survey
    before: BeforeSurgery


class PruningRun:
    """Search and cut, between two batches of a fit.

    Args:
        trainer: the Trainer, inside ``fit``.
        pl_module: its LightningModule, full size.
        settings: the callback's arguments.
        this_round: which round of the fit this is, and what the network may cost after it.
        state: what `search_state` was when a search was interrupted, or None.
        signals: signals that wait; one process gives up the candidate for them at its next batch,
            several deliver them between candidates.
        copies: what is cut along.

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
        copies: Copies,
    ) -> None:
        self.trainer = trainer
        self.module = pl_module
        self.settings = replace(settings, budget=this_round.budget)
        self.round = this_round
        self.result = PruningResult()
        self.full_state = own_state(pl_module)
        self._file = SearchFile(trainer, pl_module, f"{self.settings.searched} {this_round.dense}")
        self._signals, self._copies = signals, copies
        self._announcer = Announcer(trainer, self.settings, this_round)
        self._state: Callable[[], dict[str, Any] | None] = lambda: state

    @property
    def search_state(self) -> dict[str, Any] | None:
        """Where the search stands, plain data; None before it has begun."""
        return self._state()

    def execute(self) -> Cut | None:
        """Run everything.

        The state of the search is written to disk after every generation, and when something ends
        the search before its time.

        Returns:
            What was cut; None where nothing was, which a warning has said.

        Raises:
            MisconfigurationException: when there is nothing to prune, no way to the budget, no
                such metric, or none that is finite; nothing was changed.
        """
        if torch.is_inference_mode_enabled():
            raise MisconfigurationException(
                "pruning inside `torch.inference_mode` would leave parameters that cannot train"
            )
        with self.result.timed("preparation"):
            ready = self._prepare()
        if self._is_met(ready):
            return None
        with self.result.timed("search"):
            mask = self._find(ready)
        if mask is None:
            return None
        self._leave_if_asked()
        with self.result.timed("surgery"):
            return self._cut(ready, mask)

    def report(self, cut: Cut) -> None:
        """Show what surgery has done."""
        survey = cut.survey
        try:
            self._announcer.finish(
                self.module, survey.surgery, survey.samples, cut.mask, self.result, cut.before
            )
        except Exception as error:  # the network is small already: a report must not end the fit
            rank_zero_warn(f"the pruning report could not be written: {error!r}")

    def _prepare(self) -> Ready:
        survey = Survey.of(self.trainer, self.module, self.settings, self._copies)
        survey.tell()
        candidates = CandidateEvaluation(
            self.trainer,
            survey,
            self.result,
            interrupted=self._signal_waits,
            after_interruption=self._deliver_signals,
            between_finalists=self._leave_if_asked,
        )
        interrupted = self._file.read(self._state())
        latency, model, limit = None, None, self.settings.budget.get(LATENCY)
        if limit is not None:
            calibration = interrupted and interrupted.get("latency")
            with traceless(self.trainer):
                latency = LatencyLimit(self.trainer, survey.surgery, limit, calibration)
            model = latency.model
        space = survey.space(self.round.dense, model)
        choice = None
        if self.settings.has_front:
            wanted = survey.wanted(space, self.round.dense, model)
            weights = self._file.weights
            choice = FrontChoice(self.trainer, self.settings, space, wanted, candidates, weights)
        self._tell_uncut(survey.dense, candidates.uncut)  # after all that may refuse
        return Ready(survey, candidates, latency, space, choice, interrupted)

    def _tell_uncut(self, dense: float, recalibrated: float) -> None:
        """Say what candidates are to be compared with."""
        self.result.fitness.update(dense=dense, recalibrated=recalibrated)
        anew = ""
        if recalibrated != dense:
            anew = f", and {recalibrated:.4f} recalibrated, as candidates are"
        self._announcer.say(f"{self.settings.monitor} of the uncut network: {dense:.4f}{anew}")

    def _is_met(self, ready: Ready) -> bool:
        """Whether nothing is to be done; then it is said."""
        met, what = ready.space.already_met, f"the budget {dict(self.settings.budget)}"
        if ready.choice is not None:
            met, what = ready.choice.already_met, f"`pick={self.settings.pick}`"
        if met:
            rank_zero_warn(f"The network meets {what} already: nothing was pruned.")
        return met

    def _find(self, ready: Ready) -> Mask | None:
        """Search, or read what an earlier search has found, and choose."""
        if ready.choice is not None and self.settings.front is not None:
            return self._choose_from(ready, ready.choice, ready.choice.saved())
        search = self._make_search(ready)
        self._run_search(ready, search)
        return self._choose(ready, search)

    def _make_search(self, ready: Ready) -> AskTellSearch:
        settings, interrupted = self.settings, ready.interrupted
        search: AskTellSearch = (
            GeneticSearch(ready.space, **settings.of_search)
            if ready.choice is None
            else ready.choice.make_search()
        )
        if interrupted is not None:
            search.load_state_dict(interrupted)
        if isinstance(search, GeneticSearch):
            race = interrupted and interrupted.get("race")
            ready.candidates.start_race(search.num_parents, race)
        search.noise = ready.survey.noise
        self._state = lambda: self._file.packed(_state_of(ready, search))
        return search

    def _run_search(self, ready: Ready, search: AskTellSearch) -> None:
        live = self._announcer.live(search)
        try:
            while not search.done:
                generation, mask = search.generation, search.ask()[0]
                search.tell([mask], [ready.candidates.fitness(mask)])
                self._follow_rank_zero(search)
                live.evaluated()
                self._leave_if_asked()
                if search.generation > generation or search.done:
                    self._file.write(_state_of(ready, search))
        except BaseException:  # an interrupt of any kind: nothing that was evaluated is lost
            self._file.write(_state_of(ready, search))
            raise
        self.result.history = ready.candidates.with_work(search.history)
        if isinstance(search, GeneticSearch):
            self.result.seeds = dict(search.seeds)
        live.ended(ready.candidates.race_summary)

    def _leave_if_asked(self) -> None:
        """Here the network is whole, and may be left by all ranks together."""
        self._deliver_signals()
        require_time(self.trainer)

    def _deliver_signals(self) -> None:
        self._signals.adopt(union_over_ranks(self.trainer, self._signals.waiting))
        self._signals.deliver()
        if self.trainer.received_sigterm:  # Lightning does not look after a last batch
            raise SIGTERMException

    def _signal_waits(self) -> bool:
        """Whether a handler must run soon; what it changes is to stay, so not in a candidate."""
        alone = self.trainer.world_size == 1  # others may be at another batch
        return alone and bool(self._signals.waiting or self.trainer.received_sigterm)

    def _follow_rank_zero(self, search: AskTellSearch) -> None:
        """Keep the ranks' searches in step: clocks differ, and `max_time` decides by the clock."""
        if self.trainer.world_size > 1:
            state = broadcast(self.trainer, search.state_dict())
            if not self.trainer.is_global_zero:
                search.load_state_dict(state)

    def _choose(self, ready: Ready, search: AskTellSearch) -> Mask | None:
        """The best mask; on all validation data where the search saw a part of it."""
        if ready.choice is not None and isinstance(search, ParetoSearch):
            return self._choose_from(ready, ready.choice, ready.choice.found(search))
        mask, fitness = search.best
        elite = search.elite(5)
        finalists = [mask for mask, _ in elite]
        if self.settings.fitness_batches is not None:
            mask, fitness = ready.candidates.best_of(finalists)
        if ready.latency is not None and not ready.latency.holds(mask):
            mask, fitness = ready.candidates.best_of(ready.latency.held(finalists, ready.space))
        self.result.fitness["chosen"] = fitness
        if not math.isfinite(fitness):
            # What has learned nothing is not gone on with: a resumed fit searches anew.
            self._state = lambda: None
            remove_search_file(self.trainer)
            raise self._no_metric(search.evaluations)
        seen = (value for finalist, value in elite if (finalist == mask).all())
        self.result.fitness["search"] = next(seen, float("nan"))
        return broadcast(self.trainer, mask)

    def _choose_from(self, ready: Ready, choice: FrontChoice, front: Front) -> Mask | None:
        self.result.front = front
        self._announcer.keep(front)  # also if the point that is picked turns out not to be there
        chosen = choice.choose(front)
        if chosen is not None:
            self.result.chosen, self.result.floor = chosen.index, chosen.floor
            self.result.fitness.update(search=chosen.seen, chosen=chosen.metric)
        mask = broadcast(self.trainer, None if chosen is None else chosen.mask)
        if mask is not None and ready.latency is not None and not ready.latency.holds(mask):
            rank_zero_warn(
                "The network that was picked takes longer than the limit, as measured: the search"
                " predicts latency. The front holds faster ones."
            )
        return mask

    def _no_metric(self, evaluations: int) -> MisconfigurationException:
        fitness = self.result.fitness
        return MisconfigurationException(
            f"Expected `{self.settings.monitor}` to be finite for at least one candidate, but of"
            f" {evaluations} the best one has {fitness['chosen']}, and the uncut network"
            f" {fitness['dense']}: nothing was pruned. See whether training has diverged, or the"
            " metric is not defined on these validation batches; the search begins anew when the"
            " fit is resumed from a checkpoint."
        )

    def _cut(self, ready: Ready, mask: Mask) -> Cut:
        """Surgery on everything that holds the network, then on with the fit."""
        trainer, surgery = self.trainer, ready.survey.surgery
        with traceless(trainer):
            before = BeforeSurgery.of(self.module, surgery)
        planned = surgery.plan(mask)
        require_agreement(trainer, "what to cut", planned.to_json())
        along = [(model, planned) for model in averaged_models(trainer)]
        along += [(one.module, planned.within(one.student)) for one in ready.survey.followers]
        for model, part in along:
            part.check(model)
        plan = surgery.apply(mask, optimizers=trainer.optimizers)
        for model, part in along:
            part.apply(model)
        macs = [macs // ready.survey.samples for macs in plan.summary["macs"]]
        self.result.plan = replace(plan, summary={**plan.summary, "macs": macs})
        ready.candidates.recalibrate()
        rebuild_ddp(trainer)
        if self.settings.reset_monitors:
            for path in reset_monitors(trainer):
                rank_zero_info(f"best checkpoint before pruning: {path}; from here on anew")
        return Cut(mask, ready.survey, before)


def _state_of(ready: Ready, search: AskTellSearch) -> dict[str, Any]:
    return {
        **search.state_dict(),
        "race": ready.candidates.race_state,
        "latency": ready.latency and ready.latency.state_dict(),
    }
