"""ChannelSurgery: look at a network, mask it, shrink it for a while, or shrink it for good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from lightning_slimga.arguments import (
    NAMES,
    SURGERY,
    check_patterns,
    check_twins,
    checked,
    expect,
)
from lightning_slimga.graph.cost import Cost
from lightning_slimga.graph.exclusions import (
    keep_matching,
    keep_unscaled,
    keep_untrained,
    untrained_modules,
)
from lightning_slimga.graph.labels import NOTHING
from lightning_slimga.graph.layers import Layer, build_channel_graph
from lightning_slimga.graph.twins import inside, tie_twins
from lightning_slimga.running.calls import calls_from_example
from lightning_slimga.running.garbage import rare_collection
from lightning_slimga.running.model_state import kept_buffers
from lightning_slimga.surgery.analysis import analyse
from lightning_slimga.surgery.attention import why_whole
from lightning_slimga.surgery.inspection import describe, inspect
from lightning_slimga.surgery.masking import Mask, check_full_size, masked, plan_cut, swapped_in
from lightning_slimga.surgery.masks import Widths, as_bits, kept_per_layer
from lightning_slimga.surgery.optimizer_state import check_optimizers
from lightning_slimga.surgery.plan import PruningPlan
from lightning_slimga.surgery.proof.lockstep import Deviation
from lightning_slimga.surgery.proof.proof import Proof
from lightning_slimga.surgery.scores import channel_effects, channel_scores
from lightning_slimga.surgery.supported import check_model
from lightning_slimga.surgery.transaction import Transaction
from lightning_slimga.surgery.unreached import Unreached, find_unreached
from lightning_slimga.text import count


class SurgeryError(RuntimeError):
    """A surgery was proved wrong on the example inputs; model and optimizers are as before."""


class ChannelSurgery:
    """Which channels of a network can go, and the means to remove them.

    The analysis runs the network on the example inputs, in evaluation and in training mode, and
    then proves itself by cutting a random part of every layer. The model is left as it was.

    Args:
        model: any ``nn.Module`` with its weights, compiled or not; full size.
        example_inputs: what one forward call receives: a Tensor, a tuple of positional
            arguments, a dict of keyword arguments, or recorded
            :class:`~lightning_slimga.running.Call` objects. MACs are counted for exactly these.
        training_inputs: what is run in training mode, in the same forms, where it differs
            (auxiliary heads that only the training step calls); None: the example inputs.
        ignore: patterns of module names (``"head.*"``) that keep the channels they make.
        only_scaled: leave layers without a scaling factor γ alone.
        allow_approximate: also offer channels under statistics across channels (LayerNorm);
            removing them changes what remains, and the report says so.
        min_channels: fewest channels that a layer keeps (all, where it has no more).
        round_to: layers keep a multiple of so many channels, or all; a layer smaller than this
            stays whole.
        twins: ``(module, copy)`` names of modules that must keep the same channels, such as a
            network and its moving average; their parameters have the same names and shapes. The
            inputs need not reach the copy.
        trained: names of the parameters that are trained: channels that none of them makes stay.
            None: all.

    Attributes:
        layers: the prunable layers; each has ``name``, ``slice`` (its bits of the mask),
            ``tensors`` and ``gamma``.
        frozen: ``(tensor, dimension, channels, reason)`` of what cannot go.
        cost: MACs and parameters as formulas over kept channels per layer.
        twins: the pairs, by the names of the modules that hold the parameters.
        widths: ``min_channels`` and ``round_to``; masks that do not keep to them are refused.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> surgery = ChannelSurgery(model, torch.randn(1, 3, 16, 16))
        >>> surgery
        ChannelSurgery(Sequential, 8 removable channels in 1 layer, 83.8 k MACs)
        >>> surgery.layers
        (Layer('0', 8 channels),)
        >>> keep = torch.arange(surgery.num_channels) % 2 == 0
        >>> surgery.macs(keep), surgery.params(keep)
        (41904, 260)
        >>> surgery.apply(keep)
        PruningPlan(channels 8 -> 4, MACs 83.8 k -> 41.9 k, parameters 516 -> 260)
        >>> model[0].weight.shape
        torch.Size([4, 3, 3, 3])

    Raises:
        TypeError: when ``example_inputs`` is missing, or ``model`` is of a kind whose sizes are
            fixed elsewhere (TorchScript, torch.export, a distributed wrapper).
        ValueError: when a pattern of ``ignore`` matches no module, ``twins`` differ, another option
            is not what it may be, or ``model`` has no values yet.
    """

    @rare_collection()
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        training_inputs: Any = None,
        ignore: str | Iterable[str] = (),
        only_scaled: bool = False,
        allow_approximate: bool = False,
        min_channels: int = 1,
        round_to: int = 1,
        twins: Iterable[tuple[str, str]] = (),
        trained: Iterable[str] | None = None,
    ) -> None:
        check_model(model)
        self.widths = Widths(min_channels, round_to)
        switches = {"only_scaled": only_scaled, "allow_approximate": allow_approximate}
        given = checked(SURGERY, ignore=ignore, **switches)
        check_patterns(model, given["ignore"])
        self.twins = check_twins(model, twins)
        self._trained = None if trained is None else _parameters_named(model, trained)
        self.model = model
        self.calls = calls_from_example(example_inputs)
        training = self.calls if training_inputs is None else calls_from_example(training_inputs)
        analysis = analyse(model, self.calls, training, approximate=given["allow_approximate"])
        tie_twins(analysis.trace, self.twins)
        keep_matching(analysis.trace, given["ignore"])
        if self._trained is not None:
            keep_untrained(analysis.trace, self._trained)
        self._proof = Proof(model, self.calls, training, analysis)
        self._graph = self._proof.settle()
        if given["only_scaled"]:
            keep_unscaled(analysis.trace, self._graph)
            self._graph = build_channel_graph(analysis.trace, analysis.costs)
        self._slots = analysis.trace.slots
        self._analysis = analysis

    @property
    def num_channels(self) -> int:
        """Removable channels: the number of bits of a mask."""
        return self._graph.num_channels

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The prunable layers, in the order in which the network runs."""
        return self._graph.layers

    @property
    def frozen(self) -> tuple[tuple[str, int, int, str], ...]:
        """``(tensor, dimension, number of channels, reason)`` of what cannot go."""
        return self._graph.frozen

    @property
    def cost(self) -> Cost:
        """MACs and parameters over kept channels per layer."""
        return self._graph.cost

    @property
    def untrained(self) -> list[str]:
        """The outermost modules that keep their channels because nobody trains them."""
        if self._trained is None:
            return []
        return untrained_modules(self._analysis.trace, self._graph, self._trained)

    @property
    def untrained_costs(self) -> dict[str, int]:
        """``macs`` and ``params`` within :attr:`untrained` modules, where nothing can go."""
        touched = {m for n, _ in self._graph.bits for m, _ in self._slots[n].places}
        whole = self.untrained
        full = self._graph.full_counts[None]
        return {
            name: sum(
                cost
                for module, cost in formula.by_module(full).items()
                if module not in touched and any(inside(module, one) for one in whole)
            )
            for name, formula in (("macs", self.cost.macs), ("params", self.cost.params))
        }

    @property
    def unreached(self) -> tuple[Unreached, ...]:
        """Modules with parameters that no call has reached; they are left as they are."""
        return find_unreached(self._analysis.trace, self.layers)

    def writes(self, tensor: str, dim: int) -> bool:
        """Whether channels along a dimension of a tensor are those that it makes (or scales)."""
        return self._graph.writes(tensor, dim)

    def channels_of(self, tensor: str, dim: int) -> npt.NDArray[np.int64]:
        """Which channel each index of a tensor's dimension belongs to.

        Args:
            tensor: name of a parameter or buffer, as in ``named_parameters``; of one that stands
                in several places the first.
            dim: the dimension, counted from 0.

        Returns:
            Shape (full size of the dimension,): the bit of the mask that removes the index, -1
            where it cannot go. Indices with the same bit go together.

        Raises:
            ValueError: when the network has no such tensor, or the tensor no such dimension.
        """
        slot = self._slots.get(tensor)
        expect(slot is not None, "tensor", "the name of a parameter or buffer", tensor)
        assert slot is not None
        dims = slot.tensor.dim()
        expect(0 <= dim < dims, "dim", f"a dimension of {tensor}, which has {dims}", dim)
        nothing = np.full(slot.tensor.shape[dim], NOTHING, dtype=np.int64)
        return np.array(self._graph.bits.get((tensor, dim), nothing))

    def macs(self, keep: Any) -> Any:
        """MACs of the shrunk network on the example inputs (multiply-adds, not FLOPs).

        Args:
            keep: mask of shape (num_channels,), True = keep; or a population of shape
                (population, num_channels).

        Returns:
            An int; for a population an int64 array of shape (population,).
        """
        return self._evaluate(self._graph.cost.macs, keep)

    def params(self, keep: Any) -> Any:
        """Number of parameters of the shrunk network; arguments as in :meth:`macs`."""
        return self._evaluate(self._graph.cost.params, keep)

    def counts(self, keep: Any) -> npt.NDArray[np.int64]:
        """Kept channels per layer: shape (layers,), or (population, layers)."""
        bits = as_bits(keep)
        if bits.ndim not in (1, 2) or bits.shape[-1] != self.num_channels:
            raise ValueError(
                f"Expected argument `keep` to be of shape ({self.num_channels},) or (population,"
                f" {self.num_channels}), one bit per removable channel, but got {bits.shape}."
            )
        return kept_per_layer(self.layers, bits)

    def costs_by_layer(self, keep: Any) -> list[tuple[int, int]]:
        """MACs (as in :meth:`macs`) and parameters of the modules that write each layer's channels.

        Args:
            keep: mask of shape (num_channels,), True = keep.
        """
        return self._graph.costs_by_layer(self.counts(keep))

    def scores(self) -> npt.NDArray[np.float64]:
        """How much each channel matters by its own weights, shape (num_channels,).

        The mean |γ| of the channel's scaling factors; where it has none, the Euclidean norm of
        its slices in the tensors that write it, scaled so that a layer's mean is 1.
        """
        return channel_scores(self.model, self._graph, self._slots)

    def effects(self) -> npt.NDArray[np.float64]:
        """The scores times the norm of the weights that read each channel, (num_channels,)."""
        return channel_effects(self.model, self._graph, self._slots)

    @contextmanager
    def masked(self, keep: Any) -> Iterator[None]:
        """Let the full-size model compute what the shrunk one computes; restored bit for bit.

        Whatever is run inside, in training mode, too: parameters, buffers (batch-norm statistics)
        and sizes are as before afterwards, and so they are after an exception. Only who writes into
        a parameter that loses nothing (a step of an optimizer) changes it for good.
        """
        mask = self._checked(keep)
        check_full_size(self.model, self._graph, self._slots)
        with kept_buffers(self.model), masked(self.model, self._graph, self._slots, mask):
            yield

    @contextmanager
    def shrunk(self, keep: Any) -> Iterator[None]:
        """Make the model really small inside the block; the same tensors come back after it.

        What is restored is the same as in :meth:`masked`. Inside, what was cut has no gradient,
        whatever the full-size parameter has.
        """
        plan = plan_cut(self._graph, self._slots, self._checked(keep))
        check_full_size(self.model, self._graph, self._slots)
        with kept_buffers(self.model), swapped_in(plan, self.model):
            yield

    def plan(self, keep: Any) -> PruningPlan:
        """What :meth:`apply` would do with this mask, with a summary of its effect."""
        mask = self._checked(keep)
        everything = np.ones_like(mask)
        cut = plan_cut(self._graph, self._slots, mask)
        counts = [self.counts(everything), self.counts(mask)]
        summary = {
            "channels": [int(everything.sum()), int(mask.sum())],
            "macs": [int(self.macs(everything)), int(self.macs(mask))],
            "params": [int(self.params(everything)), int(self.params(mask))],
            "layers": {
                layer.name: [int(counts[0][i]), int(counts[1][i])]
                for i, layer in enumerate(self.layers)
            },
        }
        return PruningPlan(cut.tensors, cut.attributes, summary)

    @rare_collection()
    def apply(self, keep: Any, optimizers: Iterable[Any] = ()) -> PruningPlan:
        """Remove channels for good: in place, proved on the example inputs, all or nothing.

        Args:
            keep: mask of shape (num_channels,), True = keep.
            optimizers: the optimizers of the model; they hold the small parameters afterwards,
                in their old places, with their state cut along. Others that hold one of its
                parameters are found and cut along, too.

        Returns:
            The plan, plain data that rebuilds the small model from the full-size class.

        Raises:
            ValueError: when the mask has another size, or leaves a layer too few channels, or a
                number of them that ``round_to`` does not allow; or the model was cut already.
            SurgeryError: when the shrunk model does not compute what the masked one does;
                model and optimizers are untouched.
        """
        mask = self._checked(keep)
        optimizers = check_optimizers(optimizers)
        plan = self.plan(mask)
        check_full_size(self.model, self._graph, self._slots)
        self._prove(mask, plan)
        with Transaction() as transaction:
            plan.cut(self.model, transaction, optimizers)
        return plan

    def _prove(self, mask: Mask, plan: PruningPlan) -> None:
        """Cut the model for a while, run it, and compare it with the masked one.

        What training alone writes into code has been seen by the analysis, which cuts every layer;
        so the model runs in training mode only where it does other things than in evaluation.
        """
        modes = ("eval",) if self._analysis.trains_as_it_runs else ("eval", "train")
        try:
            wrong = self._proof.wrong(self._graph, mask, modes)
        except Deviation as deviation:
            wrong = None if self._proof.same_values(self._graph, mask) else deviation.what
        if wrong is not None:
            layers = [n for n, (a, b) in plan.summary["layers"].items() if a != b]
            raise SurgeryError(
                f"the shrunk model does not do on the example inputs what the masked one does:"
                f" {wrong}. Layers that were cut: {', '.join(layers)}. Nothing was changed."
            )

    def _evaluate(self, cost: Any, keep: Any) -> Any:
        bits = as_bits(keep)
        counts = self.counts(bits)
        if bits.ndim == 1:
            return int(cost(counts[None])[0])
        return cost(counts)

    def _checked(self, keep: Any) -> Mask:
        mask = as_bits(keep)
        if mask.shape != (self.num_channels,):
            raise ValueError(
                f"Expected argument `keep` to be a mask of shape ({self.num_channels},), one bit"
                f" per removable channel, but got shape {mask.shape}."
            )
        self.widths.check(self.layers, mask)
        return mask

    @property
    def notes(self) -> list[str]:
        """What a user should know besides the layers, in words."""
        trace = self._analysis.trace
        notes = [f"approximate: channels under {where} may go" for where in trace.approximations]
        if self._analysis.training_error:
            notes.append(
                "in training mode the example inputs could not be run, so what only training uses"
                f" was not seen ({self._analysis.training_error})"
            )
        notes += [f"{copy} keeps the channels that {first} keeps" for first, copy in self.twins]
        if self.unreached:
            notes.append(
                f"no call has reached {', '.join(map(str, self.unreached))}, so it is left as it"
                " is, and fails where it reads channels that are cut. Give a call that reaches it"
                " (more samples, another `Call`), or name what it reads in `ignore`"
            )
        if trace.uncounted:
            ops = ", ".join(name.replace("::", ".") for name in sorted(trace.uncounted))
            notes.append(f"MACs leave out {ops}, which torch's counter has no formula for")
        prunable = {self._slots[tensor].places[0][0] for tensor, _ in self._graph.bits}
        for name, module in self.model.named_modules():
            why = why_whole(module) if isinstance(module, nn.MultiheadAttention) else None
            if why and name not in prunable:
                notes.append(f"whole heads of {name or 'the model'} stay: {why}")
        return notes + self.widths.notes(self.layers)

    def report(self) -> dict[str, Any]:
        """Every layer, and for what cannot go the reason, as plain data."""
        return inspect(self._graph, self.widths, self.notes)

    def __repr__(self) -> str:
        layers = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        macs = count(self.macs(np.ones(self.num_channels, dtype=bool)))
        return (
            f"ChannelSurgery({type(self.model).__name__}, {self.num_channels} removable channels in"
            f" {layers}, {macs} MACs)"
        )

    def __str__(self) -> str:
        return describe(self.report())


def _parameters_named(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Names as they are known here: of a tensor that stands in several places the first."""
    given = NAMES.check("trained", names)
    first = {id(p): name for name, p in reversed(list(model.named_parameters()))}
    known = {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
    unknown = [name for name in given if name not in known]
    expect(not unknown, "trained", "names of parameters of the model", unknown)
    return frozenset(known[name] for name in given)
