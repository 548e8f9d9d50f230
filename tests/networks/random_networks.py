"""Random networks: a grammar that puts the words together, and what must hold for each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_slimga.surgery.channel_surgery import ChannelSurgery
from tests.networks import words_attention, words_layers, words_shapes, words_weights
from tests.networks.checks import (
    assert_macs_exact,
    assert_same,
    random_mask,
    randomise,
    relative_error,
    run,
    snapshot,
    train_a_step,
)
from tests.networks.steps import HARSH, MAKERS, Choices, Step, flip, pick

__all__ = [
    "Report",
    "Sample",
    "build",
    "check",
    "words_attention",
    "words_layers",
    "words_shapes",
    "words_weights",
]

_LARGEST = 4096  # entries of a value; keeps a sample under a tenth of a second
_TOLERANCE = 1e-9


@dataclass
class Pair:
    """An output that is a plain object."""

    first: Tensor
    rest: dict[str, Tensor]


PACKERS: list[Callable[[list[Tensor]], Any]] = [
    lambda values: values[-1],
    lambda values: tuple(values),
    lambda values: {f"out{i}": v for i, v in enumerate(values)},
    lambda values: Pair(values[-1], {str(i): v for i, v in enumerate(values[:-1])}),
    lambda values: [values[-1], {"all": values}],
]


class RandomNet(nn.Module):
    """Steps that each read earlier values and append their own."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.mains: list[int] = []
        self.outputs: list[int] = []
        self.packer = 0
        self.auxiliary: nn.Module | None = None
        self.auxiliary_source = 0

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step, main in zip(self.steps, self.mains, strict=True):
            out = step(values[main], *[values[i] for i in step.sources])
            values += out if isinstance(out, tuple) else [out]
        result = PACKERS[self.packer]([values[i] for i in self.outputs])
        if self.training and self.auxiliary is not None:
            return result, self.auxiliary(values[self.auxiliary_source])
        return result


@dataclass
class Sample:
    """A random network and what it is called with."""

    model: RandomNet
    example: tuple[Tensor, ...]

    def on(self, device: str) -> Sample:
        """The same on another device."""
        return Sample(self.model.to(device), tuple(x.to(device) for x in self.example))

    def __repr__(self) -> str:
        net = self.model
        lines = [f"inputs {[tuple(t.shape) for t in self.example]}"]
        lines += [f"{main} -> {step}" for main, step in zip(net.mains, net.steps, strict=True)]
        lines.append(f"outputs {net.outputs} packer {net.packer}")
        if net.auxiliary is not None:
            lines.append(f"auxiliary {net.auxiliary_source} {net.auxiliary}")
        return "\n".join(lines)


def build(choices: Choices) -> Sample:
    """Put a network together, running each step as it is added."""
    torch.manual_seed(0)
    net = RandomNet()
    size, channels = pick(choices, [4, 6, 8]), pick(choices, [3, 4, 6])
    example = [torch.randn(2, channels, size, size, dtype=torch.float64)]
    if flip(choices):
        example.append(torch.randn(example[0].shape, dtype=torch.float64))
    values: list[Tensor] = list(example)
    gentle = flip(choices)
    if gentle:
        for number in range(len(example)):
            _append(net, values, number, words_layers.convolution(choices, values[number], values))
    for _ in range(choices.integer(2, 16)):
        _add_step(choices, net, values, gentle)
    _finish(choices, net, values)
    net.double()
    randomise(net, seed=1)
    return Sample(net, tuple(example))


def _add_step(choices: Choices, net: RandomNet, values: list[Tensor], gentle: bool) -> None:
    main = (
        len(values) - 1 - min(choices.integer(0, 5) // 3 * choices.integer(0, 3), len(values) - 1)
    )
    x = values[main]
    twin = [s for s, m in zip(net.steps, net.mains, strict=True) if _same(values[m], x)]
    step: Step | None
    if twin and choices.integer(0, 7) == 7:
        step = pick(choices, twin)  # a module that is called twice
    else:
        maker = pick(choices, MAKERS[x.dim()])
        step = None if gentle and maker in HARSH else maker(choices, x, values)
    if step is None:
        return
    _append(net, values, main, step)


def _append(net: RandomNet, values: list[Tensor], main: int, step: Step) -> None:
    x = values[main]
    step.double().eval()
    with torch.no_grad():
        out = step(x, *[values[i] for i in step.sources])
    out = list(out) if isinstance(out, tuple) else [out]
    if all(2 <= t.dim() <= 4 and 0 < t.numel() <= _LARGEST for t in out):
        net.steps.append(step)
        net.mains.append(main)
        values += out


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape


def _finish(choices: Choices, net: RandomNet, values: list[Tensor]) -> None:
    """A head on the last value, so that not everything reaches an output; further outputs."""
    last = len(values) - 1
    head = words_layers.convolution if values[last].dim() == 4 else words_layers.linear
    step = head(choices, values[last], values)
    net.steps.append(step)
    net.mains.append(last)
    net.outputs = [len(values)]
    if choices.integer(0, 3) == 3:
        net.outputs.insert(0, choices.integer(0, last))
    net.packer = choices.integer(0, len(PACKERS) - 1)
    if choices.integer(0, 3) == 3:
        net.auxiliary_source = choices.integer(0, last)
        source = values[net.auxiliary_source]
        maker = words_layers.convolution if source.dim() == 4 else words_layers.linear
        net.auxiliary = maker(choices, source, values)


@dataclass
class Report:
    """What a checked network looked like to the engine."""

    layers: int
    removable: float
    proof_failures: int


def check(sample: Sample, seed: int = 0) -> Report | None:
    """Everything that must hold for any network; None where the network itself cannot train.

    Raises:
        AssertionError: a counter-example.
    """
    model, example = sample.model, sample.example
    try:
        trial = copy.deepcopy(model)
        train_a_step(trial, example, torch.optim.SGD(trial.parameters(), lr=1e-4))
    except (RuntimeError, AssertionError, ValueError):
        return None
    before, random = snapshot(model), torch.get_rng_state()
    surgery = ChannelSurgery(model, example)
    assert_same(before, snapshot(model))
    assert torch.equal(random, torch.get_rng_state())
    failed = [reason for *_, reason in surgery.frozen if "rule of" in reason and "failed" in reason]
    assert not failed, failed

    keep = random_mask(surgery, seed)
    model.eval()
    _check_values(surgery, example, keep)
    assert_macs_exact(surgery, example, keep)
    assert_macs_exact(surgery, example, random_mask(surgery, seed, share=0.0))
    total = sum(p.numel() for p in model.parameters())
    removable = 1 - surgery.params(random_mask(surgery, share=0.0)) / total
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    surgery.apply(keep, optimizers=[optimizer])
    train_a_step(model, example, optimizer)
    proofs = sum("seen by the proof" in reason for *_, reason in surgery.frozen)
    return Report(len(surgery.layers), removable, proofs)


def _check_values(surgery: ChannelSurgery, example: tuple[Tensor, ...], keep: Tensor) -> None:
    model, before = surgery.model, snapshot(surgery.model)
    with torch.no_grad():
        with surgery.masked(keep):
            wanted = run(model, example)
        with surgery.shrunk(keep):
            assert sum(p.numel() for p in model.parameters()) == surgery.params(keep)
            found = run(model, example)
    assert_same(before, snapshot(model))
    assert relative_error(wanted, found) < _TOLERANCE
