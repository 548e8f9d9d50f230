"""How much each channel matters by its own weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lightning_slimga.graph.layers import ChannelGraph, Layer
from lightning_slimga.graph.tensors import Slot, modules_of, tensor_at

Scores = npt.NDArray[np.float64]


def channel_scores(model: nn.Module, graph: ChannelGraph, slots: dict[str, Slot]) -> Scores:
    """The mean |γ| of each channel's scaling factors.

    Where a layer has none, the Euclidean norm of a channel's slices in the tensors that write it,
    scaled so that the layer's mean is 1 (our own choice).

    Args:
        model: the network with its present weights, full size.
        graph: its channels.
        slots: its tensors.

    Returns:
        Scores, not negative, shape (num_channels,).
    """
    weights = _Weights(model, graph, slots)
    scores = np.zeros(graph.num_channels)
    for layer in graph.layers:
        if layer.gamma:
            scores[layer.slice] = weights.mean_magnitude(layer, layer.gamma)
        else:
            norms = weights.slice_norms(layer)
            scores[layer.slice] = norms / max(norms.mean(), 1e-12)
    return scores


def channel_effects(model: nn.Module, graph: ChannelGraph, slots: dict[str, Slot]) -> Scores:
    """How much each channel does to what reads it: its score times the weights that read it.

        effect_c = score_c · (Σ_readers ‖W_reader[:, c]‖²)^½

    The mean |γ| alone says little about a network that was trained without a penalty: multiplying
    γ and β of a channel under ReLU by a positive number, and dividing the weights that read it by
    the same number, changes |γ| and nothing else. The product does not change. Ours.

    A layer that nothing reads but the network's output keeps its scores.

    Args:
        model: the network with its present weights, full size.
        graph: its channels.
        slots: its tensors.

    Returns:
        Effects, not negative, shape (num_channels,).
    """
    weights = _Weights(model, graph, slots)
    effects = channel_scores(model, graph, slots)
    for layer in graph.layers:
        norms = weights.slice_norms(layer, reading=True)
        if norms.any():
            effects[layer.slice] *= norms
    return effects


class _Weights:
    """The weights of a network, gathered by channel."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, slots: dict[str, Slot]) -> None:
        self.modules = modules_of(model)
        self.graph = graph
        self.slots = slots

    def mean_magnitude(self, layer: Layer, gammas: tuple[str, ...]) -> Scores:
        total = np.zeros(layer.num_channels)
        times = np.zeros(layer.num_channels)
        for name in gammas:
            gamma = self._tensor(name).abs().cpu().numpy()
            self._add(total, layer, (name, 0), gamma)
            self._add(times, layer, (name, 0), np.ones_like(gamma))
        return total / np.maximum(times, 1)

    def slice_norms(self, layer: Layer, *, reading: bool = False) -> Scores:
        """Norm of each channel's slices in the weights that write it, or in those that read it."""
        total = np.zeros(layer.num_channels)
        for name, dim in layer.tensors:
            slot = self.slots[name]
            wanted = dim < 2 and self.graph.writes(name, dim) != reading
            if slot.is_parameter and len(slot.shape) > 1 and wanted:
                energy = self._tensor(name).pow(2).transpose(0, dim).flatten(1).sum(1)
                self._add(total, layer, (name, dim), energy.cpu().numpy())
        norms: Scores = np.sqrt(total)
        return norms

    def _tensor(self, name: str) -> torch.Tensor:
        tensor = tensor_at(self.modules, self.slots[name].places[0])
        assert tensor is not None
        return tensor.detach().double()

    def _add(self, total: Scores, layer: Layer, site: tuple[str, int], values: Scores) -> None:
        """Add the value of each index of a dimension to the channel that it belongs to."""
        bits = self.graph.bits[site]
        inside = (bits >= layer.slice.start) & (bits < layer.slice.stop)
        np.add.at(total, bits[inside] - layer.slice.start, values[inside])
