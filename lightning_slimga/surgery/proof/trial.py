"""Trial: one mask, tried on a network: what it returns masked, and what it returns shrunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.graph.replay import Replay
from lightning_slimga.graph.trace import OpRecord
from lightning_slimga.running.calls import Call, run_all
from lightning_slimga.running.model_state import ModelState
from lightning_slimga.surgery.analysis import Analysis, running
from lightning_slimga.surgery.masking import Mask, masked, swapped_in
from lightning_slimga.surgery.plan import PruningPlan
from lightning_slimga.surgery.proof.comparison import Watch, compare_outputs, first_difference
from lightning_slimga.surgery.proof.lockstep import Deviation, Lockstep
from lightning_slimga.surgery.proof.muting import Muting
from lightning_slimga.surgery.proof.sharing import Sharing
from lightning_slimga.surgery.proof.survivors import Survivors


class Trial:
    """One mask on one network. What both networks compute alike, the second one takes over.

    Args:
        model: the full-size network; left as it was.
        calls: how it is run, by mode (``"eval"``, ``"train"``).
        analysis: its labels and its ops.
        graph: the channels.
        keep: the mask.
        plan: what it cuts.
        state: the state of the network, if the caller has taken it.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Mapping[str, Sequence[Call]],
        analysis: Analysis,
        graph: ChannelGraph,
        keep: Mask,
        plan: PruningPlan,
        state: ModelState | None = None,
    ) -> None:
        self._model = model
        self._state = state
        self._calls = calls
        self._analysis = analysis
        self._graph = graph
        self._keep = keep
        self._plan = plan
        self._survivors = Survivors(graph, keep)
        self.pieces = plan.pieces(model)
        """What the mask leaves of the tensors."""
        self._sharing = self._unshared()
        self.strayed = False
        """Whether the masked network ran other ops than the traced one."""
        self.astray = False
        """Whether the shrunk network did so, for no other reason than its sizes."""

    def _unshared(self) -> Sharing:
        """A memory for what both networks compute, before the first of them has run."""
        inputs = tree_leaves([(call.args, call.kwargs) for call in self._calls["eval"]])
        tensors = (value for value in inputs if isinstance(value, Tensor))
        return Sharing([*self.pieces.values(), *self._model.parameters(), *tensors])

    def shrunk(self) -> list[Any]:
        """What the shrunk network returns in evaluation mode; it must run in training mode, too.

        Raises:
            Deviation: where it does not run in lockstep with the full network.
        """
        with swapped_in(self._plan, self._model, self.pieces):
            return self.in_lockstep()

    def in_lockstep(self, modes: Sequence[str] = ("eval", "train")) -> list[Any]:
        """Run the network, which is shrunk now, beside the records of the full one.

        Args:
            modes: the modes in which it runs.

        Returns:
            What it returns in evaluation mode.
        """
        room = {} if "train" in modes else {"room": 0}
        replay, outputs = Replay(source=self._sharing, **room), {}
        state = ModelState(self._model)
        for mode in modes:
            records = self._analysis.records.get(mode)
            if records is not None:
                lockstep = Lockstep(records, self._graph, self._survivors, replay)
                with running(self._model, state, training=mode == "train"):
                    outputs[mode] = lockstep.run(partial(run_all, self._model, self._calls[mode]))
                self.astray |= lockstep.astray
            replay.second = True
        self._sharing.second = True
        return outputs["eval"]

    def muted(self) -> list[Any] | None:
        """What the network returns masked, the quick way; None where that is not to be had."""
        records, trace = self._analysis.records["eval"], self._analysis.trace
        small = {name: (piece, self._plan.tensors[name]) for name, piece in self.pieces.items()}
        graph, keep, survivors = self._graph, self._keep, self._survivors
        muting = Muting(records, graph, trace, keep, survivors, small, self._sharing)
        try:
            with running(self._model, self._state), muting:
                outputs = run_all(self._model, self._calls["eval"])
        except Exception:  # the masked network itself will say what is the matter
            outputs = None
        faithful = outputs is not None and muting.faithful
        if not faithful:
            self._sharing = self._unshared()
        self._sharing.second = True
        return outputs if faithful else None

    def masked(self) -> list[Any]:
        """What the network returns masked; its attention runs torch's own code, not ours."""
        as_it_is = running(self._model, self._state, as_it_is=True)
        with as_it_is, masked(self._model, self._graph, self._analysis.trace.slots, self._keep):
            return run_all(self._model, self._calls["eval"])

    def wrong(self) -> str | None:
        """What is wrong with the values of the shrunk network, in words; None if nothing is.

        In training mode it must only run: dropout draws other numbers for other shapes.

        Raises:
            Deviation: where it does not run in lockstep with the full network.
        """
        found = self.shrunk()
        muted = self.muted()
        if muted is not None and compare_outputs(muted, found) is None:
            return None
        try:
            wanted = self.masked()
        except Exception as error:  # e.g. the network checks its own values
            return f"the masked network fails ({error})"
        what = compare_outputs(wanted, found)
        return None if what is None else self._explained(what)

    def reference(self) -> list[Any] | None:
        """What the network returns masked; None where that says little about the shrunk one."""
        if self._analysis.trace.approximations:
            return None
        try:
            muted = self.muted()
            return self.masked() if muted is None else muted
        except Exception:  # :meth:`wrong` says what is the matter
            return None

    def agrees(self, reference: list[Any] | None) -> bool:
        """Whether the network, which has been cut, does beyond doubt what it did masked.

        What training alone writes into code has been seen by the proof, which cuts every
        layer; so it runs again only where it does other things than evaluation.
        """
        modes = ("eval",) if self._analysis.trains_as_it_runs else ("eval", "train")
        try:
            found = self.in_lockstep(modes)
        except Deviation:
            return False
        return reference is not None and compare_outputs(reference, found) is None

    def _explained(self, what: str) -> str | None:
        """Find the op at which values part; None where it decides by values that are the same.

        The order of equal scores, say, may change with the last digit: nobody is to blame for it.

        Raises:
            Deviation: naming the op.
        """
        slots, records = self._analysis.trace.slots, self._analysis.records["eval"]
        model, calls = self._model, self._calls["eval"]
        wanted = Watch(records, self._graph, self._keep, full=True)
        found = Watch(records, self._graph, self._keep, full=False)
        with running(model), masked(model, self._graph, slots, self._keep), wanted:
            run_all(model, calls)
        with swapped_in(self._plan, model), running(model), found:
            run_all(model, calls)
        self.strayed = wanted.parted
        difference = first_difference(records, wanted, found)
        if isinstance(difference, OpRecord):
            raise Deviation(what, difference, by_value=True)
        return what if difference is None else None
