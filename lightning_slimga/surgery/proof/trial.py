"""Trial: one mask, tried on a network: what it returns masked, and what it returns shrunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.graph.trace import OpRecord
from lightning_slimga.running.calls import Call, run_all
from lightning_slimga.surgery.analysis import Analysis, running
from lightning_slimga.surgery.masking import Mask, masked, swapped_in
from lightning_slimga.surgery.plan import PruningPlan
from lightning_slimga.surgery.proof.comparison import Watch, compare_outputs, first_difference
from lightning_slimga.surgery.proof.lockstep import Deviation, Lockstep


class Trial:
    """One mask on one network.

    Args:
        model: the full-size network; left as it was.
        calls: how it is run, by mode (``"eval"``, ``"train"``).
        analysis: its labels and its ops.
        graph: the channels.
        keep: the mask.
        plan: what it cuts.

    Attributes:
        masked_parted: whether the masked network ran other ops than the traced one.
        shrunk_parted: whether the shrunk one did, for no other reason than its sizes.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Mapping[str, Sequence[Call]],
        analysis: Analysis,
        graph: ChannelGraph,
        keep: Mask,
        plan: PruningPlan,
    ) -> None:
        self._model = model
        self._calls = calls
        self._analysis = analysis
        self._graph = graph
        self._keep = keep
        self._plan = plan
        self.masked_parted = False
        self.shrunk_parted = False

    def shrunk(self, modes: Sequence[str] = ("eval", "train")) -> list[Any]:
        """Run the shrunk network beside the records of the full one.

        Args:
            modes: the modes in which it runs, ``"eval"`` among them.

        Returns:
            What it returns in evaluation mode.

        Raises:
            Deviation: where it does not run in lockstep with the full network.
        """
        outputs: dict[str, list[Any]] = {}
        with swapped_in(self._plan, self._model):
            for mode in modes:
                if mode in self._analysis.records:
                    outputs[mode] = self._in_lockstep(mode)
        return outputs["eval"]

    def _in_lockstep(self, mode: str) -> list[Any]:
        lockstep = Lockstep(self._analysis.records[mode], self._graph, self._keep)
        try:
            with running(self._model, training=mode == "train"):
                return lockstep.run(partial(run_all, self._model, self._calls[mode]))
        finally:
            self.shrunk_parted |= lockstep.parted_by_size

    def masked(self) -> list[Any]:
        """What the network returns masked; its attention runs torch's own code, not ours."""
        slots = self._analysis.trace.slots
        as_it_is = running(self._model, as_it_is=True)
        with as_it_is, masked(self._model, self._graph, slots, self._keep):
            return run_all(self._model, self._calls["eval"])

    def wrong(self, modes: Sequence[str] = ("eval", "train")) -> str | None:
        """What is wrong with the values of the shrunk network, in words; None if nothing is.

        In training mode it must only run: dropout draws other numbers for other shapes.

        Args:
            modes: the modes in which it runs, ``"eval"`` among them.

        Raises:
            Deviation: where it does not run in lockstep with the full network.
        """
        found = self.shrunk(modes)
        try:
            wanted = self.masked()
        except Exception as error:  # e.g. the network checks its own values
            return f"the masked network fails ({error})"
        what = compare_outputs(wanted, found)
        return None if what is None else self._explained(what)

    def same_values(self) -> bool:
        """Whether both networks return the same, by whatever ops, and the shrunk one can train."""
        try:
            with swapped_in(self._plan, self._model):
                with running(self._model):
                    found = run_all(self._model, self._calls["eval"])
                if "train" in self._analysis.records:
                    with running(self._model, training=True):
                        run_all(self._model, self._calls["train"])
            return compare_outputs(self.masked(), found) is None
        except Exception:  # whatever a network raises that has become too small
            return False

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
        self.masked_parted = wanted.parted
        difference = first_difference(records, wanted, found)
        if isinstance(difference, OpRecord):
            raise Deviation(what, difference, by_value=True)
        return what if difference is None else None
