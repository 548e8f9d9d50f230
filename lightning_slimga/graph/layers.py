"""From labels to prunable layers: what one bit of a mask removes, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lightning_slimga.graph.cost import Cost, LinearSize, Polynomial, Term
from lightning_slimga.graph.labels import NOTHING, LabelArray
from lightning_slimga.graph.trace import CostTerm, SizeAttribute, Trace

Bits = npt.NDArray[np.int64]
"""For every index of a dimension the bit of the mask that removes it, or ``NOTHING``."""


@dataclass(frozen=True)
class Layer:
    """Channels that stand in the same places: one contiguous piece of the mask.

    Attributes:
        name: the module that makes the channels (with a range where it makes several layers).
        slice: the layer's bits of the mask.
        tensors: ``(tensor name, dimension)`` of everything that shrinks along.
        gamma: names of the scaling factors (γ) that belong to the channels; None without any.
    """

    name: str
    slice: slice
    tensors: tuple[tuple[str, int], ...]
    gamma: tuple[str, ...] | None

    def __repr__(self) -> str:
        gamma = f", γ {', '.join(self.gamma)}" if self.gamma else ""
        return f"Layer({self.name!r}, {self.num_channels} channels{gamma})"

    @property
    def num_channels(self) -> int:
        """Channels of the full network."""
        return int(self.slice.stop - self.slice.start)


@dataclass(frozen=True)
class ChannelGraph:
    """The result of an analysis.

    Attributes:
        layers: the prunable layers, in the order in which the network runs.
        bits: for each ``(tensor name, dimension)`` that a mask can shrink, the bit of each index.
        attributes: attributes to rewrite, with the bit of each unit.
        frozen: ``(tensor name, dimension, number of channels, reason)`` of what cannot go.
        cost: MACs and parameters of any mask.
        bit_of_label: bit of every label of the trace.
        zeroed: ``(tensor name, dimension)`` of the slices that masking sets to zero.
        summed_rows: names of the weights that are summed over along dimension 0, as those of
            transposed convolutions are.
    """

    layers: tuple[Layer, ...]
    bits: dict[tuple[str, int], Bits]
    attributes: tuple[tuple[SizeAttribute, Bits], ...]
    frozen: tuple[tuple[str, int, int, str], ...]
    cost: Cost
    bit_of_label: Bits
    zeroed: frozenset[tuple[str, int]]
    summed_rows: frozenset[str]

    @property
    def num_channels(self) -> int:
        """Removable channels: bits of a mask."""
        return self.layers[-1].slice.stop if self.layers else 0

    @property
    def full_counts(self) -> Bits:
        """Channels of each layer of the full network, shape (layers,)."""
        return np.array([layer.num_channels for layer in self.layers], dtype=np.int64)

    def costs_by_layer(self, counts: Bits) -> list[tuple[int, int]]:
        """MACs on the example inputs, and parameters, of the modules that write a layer's channels.

        Args:
            counts: kept channels of each layer, shape (layers,).
        """
        costs = [cost.by_module(counts[None]) for cost in (self.cost.macs, self.cost.params)]
        rows = []
        for layer in self.layers:
            tensors = (name for name, dim in layer.tensors if self.writes(name, dim))
            writers = {name.rpartition(".")[0] for name in tensors}
            macs, params = (sum(cost.get(one, 0) for one in writers) for cost in costs)
            rows.append((macs, params))
        return rows

    def writes(self, tensor: str, dim: int) -> bool:
        """Whether channels along a dimension of a tensor are those that it makes."""
        return dim == int(tensor in self.summed_rows)

    def live(self, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Whether each label stays under a mask of shape (num_channels,).

        Indexed by the labels of a dimension it tells which of its indices stay; what has no label
        stays, too (``NOTHING`` is -1: the last entry).
        """
        stays = np.append(keep, True)
        live: npt.NDArray[np.bool_] = stays[self.bit_of_label]
        return live

    def bits_of(self, labels: LabelArray) -> Bits:
        """The bit of each label; ``NOTHING`` where it cannot go."""
        bits: Bits = self.bit_of_label[labels]  # NOTHING is -1: the last entry
        return bits


def build_channel_graph(trace: Trace, costs: list[CostTerm]) -> ChannelGraph:
    """Group labels into channels and channels into layers.

    Args:
        trace: what the traced passes have taught.
        costs: the cost terms of the pass whose cost counts (evaluation mode).

    Returns:
        The graph. Channels of one layer stand in exactly the same dimensions of the same
        tensors, cost terms and attributes, equally often: so cost depends on counts alone.
    """
    return _Builder(trace, costs).build()


class _Builder:
    def __init__(self, trace: Trace, costs: list[CostTerm]) -> None:
        self.trace = trace
        self.costs = costs
        self.roots = trace.store.roots()
        self.reasons = trace.store.frozen_reasons(self.roots)
        self.sites = {
            (name, dim): labels
            for name, dims in trace.slot_labels.items()
            for dim, labels in enumerate(dims)
            if labels is not None
        }

    def build(self) -> ChannelGraph:
        classes, layer_of_class = self._layers_of_classes()
        layers, bits = self._order(classes, layer_of_class)
        bit_of_root = np.full(len(self.trace.store), NOTHING, dtype=np.int64)
        bit_of_root[classes] = bits
        bit_of_label = np.append(bit_of_root[self.roots], NOTHING)
        layer_of_bit = np.repeat(
            np.arange(len(layers), dtype=np.int64), [layer.num_channels for layer in layers]
        )
        graph = ChannelGraph(
            layers=tuple(layers),
            bits={},
            attributes=(),
            frozen=tuple(self._frozen(bit_of_label)),
            cost=self._cost(bit_of_label, layer_of_bit, len(layers)),
            bit_of_label=bit_of_label,
            zeroed=self._zeroed(),
            summed_rows=frozenset(self.trace.summed_rows),
        )
        for site, labels in self.sites.items():
            found = graph.bits_of(labels)
            if (found >= 0).any():
                graph.bits[site] = found
        attributes = [
            (attribute, graph.bits_of(attribute.labels))
            for attribute in self.trace.attributes.values()
        ]
        changing = tuple((a, b) for a, b in attributes if (b >= 0).any())
        return replace(graph, attributes=changing)

    def _zeroed(self) -> frozenset[tuple[str, int]]:
        slots, buffers = self.trace.slots, self.trace.contracted_buffers
        owned = (site for site in self.sites if slots[site[0]].is_parameter or site[0] in buffers)
        return frozenset(owned) - self.trace.divisors

    def _layers_of_classes(self) -> tuple[Bits, Bits]:
        """Live classes that own a slice of some tensor, and a signature number for each."""
        owned = np.zeros(len(self.trace.store), dtype=bool)
        for labels in self.sites.values():
            owned[self.roots[labels]] = True
        live = owned & (self.reasons[self.roots] < 0)
        classes = np.flatnonzero(live & (self.roots == np.arange(len(self.roots))))
        signature = self._signatures()[classes]
        _, layer = np.unique(signature, return_inverse=True)
        sizes = np.bincount(layer, minlength=1)
        keep = sizes[layer] > 1  # a layer of a single channel can lose none
        return classes[keep], layer[keep]

    def _signatures(self) -> npt.NDArray[np.uint64]:
        """A hash per class of the places in which it stands, with multiplicity.

        A random 64-bit number per place, added once for every time that the class stands there:
        equal sums for different places have a chance of about 2**-64.
        """
        generator = np.random.Generator(np.random.PCG64(0))
        total = np.zeros(len(self.trace.store) + 1, dtype=np.uint64)
        roots = np.append(self.roots, NOTHING)
        for labels in self._places():  # one by one: new memory for all at once is dearer
            np.add.at(total, roots[labels], generator.integers(1, 2**63, dtype=np.uint64))
        return total[:-1]

    def _places(self) -> list[LabelArray]:
        """Labels of tensors, costs and attributes; what has the same ones tells nothing new."""
        factors = [labels for term in self.costs for labels in term.factors]
        counted = [attribute.labels for attribute in self.trace.attributes.values()]
        places = (*self.sites.values(), *factors, *counted)
        return list({id(labels): labels for labels in places}.values())

    def _order(self, classes: Bits, layer_of_class: Bits) -> tuple[list[Layer], Bits]:
        """Number the layers by first appearance and their channels by position."""
        position = np.full(len(self.trace.store), np.iinfo(np.int64).max, dtype=np.int64)
        sites = list(self.sites)
        starts = np.cumsum([0, *map(len, self.sites.values())])
        if sites:
            roots = self.roots[np.concatenate(list(self.sites.values()))]
            # of what is assigned to one entry several times, numpy keeps the last: the first place
            position[roots[::-1]] = np.arange(len(roots) - 1, -1, -1, dtype=np.int64)
        order = np.argsort(position[classes], kind="stable")
        _, first, layer = np.unique(layer_of_class[order], return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # of each layer, by its first channel
        members = order[np.argsort(rank[layer], kind="stable")]
        bits = np.empty(len(classes), dtype=np.int64)
        bits[members] = np.arange(len(classes), dtype=np.int64)
        ends = np.cumsum(np.bincount(rank[layer], minlength=len(first)))
        layers, representatives = [], []
        for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=False):
            places = position[classes[members[begin:end]]]
            name = self._name(places, starts, sites)
            layers.append(Layer(name, slice(begin, end), (), None))
            representatives.append(classes[members[begin]])
        found = np.array(representatives, dtype=np.int64)
        return self._with_tensors(_unique_names(layers), found), bits

    def _name(self, places: Bits, starts: Bits, sites: list[tuple[str, int]]) -> str:
        home = int(np.searchsorted(starts, places[0], side="right")) - 1
        tensor, _ = sites[home]
        place = self.trace.slots[tensor].places[0]
        module = place[0].split(".parametrizations.")[0]
        plain = place[1] in ("weight", "in_proj_weight", "q_proj_weight")
        return module if module and (plain or ".parametrizations." in place[0]) else tensor

    def _with_tensors(self, layers: list[Layer], representatives: Bits) -> list[Layer]:
        """Fill in where each layer stands, and which of the places are scaling factors."""
        number = np.full(len(self.trace.store), NOTHING, dtype=np.int64)
        number[representatives] = np.arange(len(layers), dtype=np.int64)
        tensors: list[list[tuple[str, int]]] = [[] for _ in layers]
        for site, labels in self.sites.items():
            found = number[self.roots[labels]]
            for layer in sorted(set(found[found >= 0].tolist())):
                tensors[layer].append(site)
        result = []
        for layer, sites in zip(layers, tensors, strict=True):
            gamma = tuple(name for name, _ in sites if name in self.trace.scaling_factors)
            result.append(replace(layer, tensors=tuple(sites), gamma=gamma or None))
        return result

    def _frozen(self, bit_of_label: Bits) -> list[tuple[str, int, int, str]]:
        rows = []
        for (name, dim), labels in self.sites.items():
            fixed = labels[bit_of_label[labels] < 0]
            if not fixed.size:
                continue
            numbers, times = np.unique(self.reasons[fixed], return_counts=True)
            for number, count in zip(numbers, times, strict=True):
                alone = (
                    "its channels can only go all at once, as one group (of a GroupNorm, say):"
                    " nothing would be left"
                )
                reason = self.trace.store.reasons[number] if number >= 0 else alone
                rows.append((name, dim, int(count), reason))
        return rows

    def _cost(self, bit_of_label: Bits, layer_of_bit: Bits, num_layers: int) -> Cost:
        cache: dict[int, LinearSize] = {}
        channels = np.bincount(layer_of_bit, minlength=num_layers)

        def size(labels: LabelArray) -> LinearSize:
            if id(labels) not in cache:
                cache[id(labels)] = _linear_size(labels, bit_of_label, layer_of_bit, channels)
            return cache[id(labels)]

        def term(cost: CostTerm) -> Term:
            over = None if cost.over is None else size(cost.over)
            return Term(cost.module, cost.constant, tuple(map(size, cost.factors)), over)

        macs = [term(cost) for cost in self.costs]
        params = []
        for slot in self.trace.slots.values():
            if slot.is_parameter:
                dims = self.trace.slot_labels.get(slot.name, [None] * len(slot.shape))
                shape = slot.shape
                fixed = [n for n, dim in zip(shape, dims, strict=True) if dim is None]
                sizes = tuple(size(dim) for dim in dims if dim is not None)
                constant = int(np.prod(fixed, dtype=np.int64))
                params.append(Term(slot.places[0][0], constant, sizes))
        return Cost(Polynomial(macs, num_layers), Polynomial(params, num_layers))


def _linear_size(
    labels: LabelArray, bit_of_label: Bits, layer_of_bit: Bits, channels: Bits
) -> LinearSize:
    bits = bit_of_label[labels[labels >= 0]]
    bits = bits[bits >= 0]
    per_layer = np.bincount(layer_of_bit[bits], minlength=len(channels))
    multiplicity = tuple(
        (int(layer), int(per_layer[layer] // channels[layer]))
        for layer in np.flatnonzero(per_layer)
    )
    return LinearSize(len(labels) - len(bits), multiplicity)


def _unique_names(layers: list[Layer]) -> list[Layer]:
    times: dict[str, int] = {}
    for layer in layers:
        times[layer.name] = times.get(layer.name, 0) + 1
    number: dict[str, int] = {}
    result = []
    for layer in layers:
        name = layer.name
        if times[name] > 1:
            number[name] = number.get(name, 0) + 1
            name = f"{name}#{number[name]}"
        result.append(replace(layer, name=name))
    return result
