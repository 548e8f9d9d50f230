from __future__ import annotations

import gzip
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from examples import fashion_mnist
from lightning_slimga import load_pruned

ROOT = Path(__file__).parent.parent
DATA = Path("/usr/share/datasets/fashion-mnist")
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="the package dataset-fashion-mnist is not installed"
)
SMALL_FIT = [
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.callbacks.prune_epoch=1",
    "--trainer.callbacks.population_size=4",
    "--trainer.callbacks.generations=2",
    "--trainer.callbacks.fitness_batches=1",
]


def run_example(name: str, *arguments: str, timeout: float = 500.0) -> str:
    """Run an example as a user does, in the working directory of the test."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def macs(net: torch.nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, 1, 28, 28))
    return counter.get_total_flops() // 2


@pytest.mark.slow
def test_digits_loses_half_of_the_macs_for_one_point_of_accuracy() -> None:
    output = run_example("digits.py")
    names = "dense|sparse|pruned before fine-tuning|fine-tuned"
    lines = re.findall(rf"^({names}) +(.*) ms$", output, re.MULTILINE)
    assert [name for name, _ in lines] == names.split("|")
    rows = {name: [float(n.replace(",", "")) for n in text.split()] for name, text in lines}
    _, dense_accuracy, dense_params, dense_macs, _ = rows["dense"]
    _, accuracy, params, small_macs, _ = rows["fine-tuned"]
    assert dense_accuracy > 0.97
    assert accuracy >= dense_accuracy - 0.01
    assert small_macs <= 0.5 * dense_macs
    assert params < dense_params
    assert rows["sparse"][2:4] == [dense_params, dense_macs]
    assert rows["pruned before fine-tuning"][2:4] == [params, small_macs]


def test_a_rule_of_the_users_frees_what_a_custom_op_has_frozen() -> None:
    output = run_example("custom_op.py")
    before, after = re.findall(r"(\d+) removable channels", output)
    assert (before, after) == ("0", "48")
    assert "0.conv.weight: op shop.bias_gelu in 0 has no rule" in output
    (error,) = re.findall(r"masked and shrunk differ by (\S+)", output)
    assert float(error) < 1e-6
    (widths,) = re.findall(r"trains on: \[(\d+), (\d+)\]", output)
    assert 0 < int(widths[0]) < 16
    assert 0 < int(widths[1]) < 32


def test_operators_of_the_users_are_called_and_their_children_meet_the_budget() -> None:
    output = run_example("custom_operator.py")
    assert "GeneticSearch(generation 6 of 6, 72 evaluations, best " in output
    (by_hand,) = re.findall(r"children of two parents: (\d+)", output)
    assert int(by_hand) >= 5 * 12
    (cost, limit) = re.findall(r"channels: (\d+) of at most (\d+)", output)[0]
    assert int(cost) == int(limit) == 24


@pytest.mark.slow
@needs_data
def test_fashion_mnist_by_command_line_keeps_the_budget_named_there(tmp_path: Path) -> None:
    config = ROOT / "examples" / "fashion_mnist.yaml"
    output = run_example(
        "fashion_mnist.py", "fit", f"--config={config}", *SMALL_FIT,
        "--trainer.callbacks.budget.macs=0.35",
    )  # fmt: skip
    assert "search: generation" in output
    (checkpoint,) = tmp_path.rglob("epoch=1*.ckpt")
    small = load_pruned(fashion_mnist.FashionClassifier, checkpoint)
    assert macs(small) <= 0.35 * macs(fashion_mnist.SmallResNet((32, 64, 128)))
    assert [path.parent.name for path in tmp_path.rglob("report.json")] == ["pruning_report"]


@needs_data
def test_fashion_mnist_splits_without_overlap_or_loss() -> None:
    data = fashion_mnist.FashionMNIST()
    data.setup("fit")
    sizes = {name: len(part) for name, part in data.parts.items()}
    assert sizes == {"train": 55_000, "val": 5_000, "test": 10_000}
    parts = (data.parts["train"].tensors[1], data.parts["val"].tensors[1])
    assert torch.cat(parts).bincount().tolist() == [6000] * 10
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (1000, 1, 28, 28)
    assert labels.shape == (1000,)
    train_batches = data.train_dataloader()
    assert len(train_batches) == 55_000 // 128
    pixels = data.parts["train"].tensors[0]
    assert abs(float(pixels.mean())) < 0.01
    assert float(pixels.std()) == pytest.approx(1.0, abs=0.01)


def test_idx_file_is_read_with_its_shape(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "x-idx3-ubyte.gz"
    header = struct.pack(">BBBBiii", 0, 0, 8, 3, 2, 3, 4)
    path.write_bytes(gzip.compress(header + values.tobytes()))
    np.testing.assert_array_equal(fashion_mnist.read_idx(path).numpy(), values)


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"t10k-labels.* --data\.download=true"):
        fashion_mnist.read_idx(tmp_path / "t10k-labels-idx1-ubyte.gz")


def test_small_resnet_has_the_documented_size() -> None:
    assert macs(fashion_mnist.SmallResNet()) == 5_720_352
