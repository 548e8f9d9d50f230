from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from lightning_slimga.callbacks.sparsity.callback import SparsityCallback
from lightning_slimga.sparsity.penalties import L1Half
from tests.fits.sparsity_net import Net

CLASS = "lightning_slimga.callbacks.sparsity.callback.SparsityCallback"


class Quartic:
    """A penalty of one's own.

    Args:
        scale: Factor of the penalty.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def value(self, gamma: Tensor) -> Tensor:
        return self.scale * gamma.pow(4).sum()

    def gradient(self, gamma: Tensor) -> Tensor:
        return 4 * self.scale * gamma.pow(3)


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    # LightningCLI itself calls what newer jsonargparse has renamed.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def cli(*args: str, run: bool = False) -> SparsityCallback:
    quiet = ["logger=false", "enable_progress_bar=false", "enable_checkpointing=false"]
    quiet += ["accelerator=cpu", "max_epochs=1", "enable_model_summary=false"]
    parsed = LightningCLI(
        Net,
        seed_everything_default=1,
        save_config_callback=None,
        run=run,
        args=[*(["fit"] if run else []), *(f"--trainer.{q}" for q in quiet), *args],
    )
    (found,) = [c for c in parsed.trainer.callbacks if isinstance(c, SparsityCallback)]
    return found


def yaml(path: Path, init_args: str) -> str:
    path.write_text(
        f"trainer:\n  callbacks:\n    - class_path: {CLASS}\n      init_args: {{{init_args}}}\n"
    )
    return f"--config={path}"


def test_yaml_with_plain_values(tmp_path: Path) -> None:
    config = "strength: 1e-3, penalty: l1, warmup_epochs: 2, include: [body.*], norms: [batch]"
    callback = cli(yaml(tmp_path / "c.yaml", config))
    assert callback.strength == 1e-3
    assert type(callback.penalty).__name__ == "L1"
    assert callback.warmup_epochs == 2
    assert "include=('body.*',), norms=('batch',)" in repr(callback)


def test_yaml_with_a_penalty_by_class_path(tmp_path: Path) -> None:
    penalty = "penalty: {class_path: lightning_slimga.sparsity.L1Half, init_args: {epsilon: 0.5}}"
    callback = cli(yaml(tmp_path / "c.yaml", penalty))
    assert isinstance(callback.penalty, L1Half)
    assert callback.penalty.epsilon == 0.5


def test_yaml_with_a_penalty_of_ones_own(tmp_path: Path) -> None:
    penalty = f"penalty: {{class_path: {__name__}.Quartic, init_args: {{scale: 3}}}}"
    callback = cli(yaml(tmp_path / "c.yaml", penalty))
    assert isinstance(callback.penalty, Quartic)
    assert callback.penalty.scale == 3
    assert torch.equal(callback.penalty.gradient(torch.ones(1)), torch.tensor([12.0]))


def test_command_line_adds_and_runs_it() -> None:
    callback = cli(
        f"--trainer.callbacks+={CLASS}",
        "--trainer.callbacks.strength=0.5",
        "--trainer.callbacks.proximal=true",
        run=True,
    )
    assert (callback.strength, callback.proximal) == (0.5, True)


@pytest.mark.parametrize(
    ("option", "message"),
    [("penalty=lasso", "lasso"), ("strenght=1", "strenght"), ("norms=[rms]", "rms")],
)
def test_wrong_keys_and_values_are_named(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli(f"--trainer.callbacks+={CLASS}", f"--trainer.callbacks.{option}")
    assert message in capsys.readouterr().err


def test_help_shows_each_argument_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(f"--trainer.callbacks.help={CLASS}")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Pulls the scaling factors" in shown
    assert "λ >= 0, the weight of the penalty" in shown
    assert "Literal['l1_2', 'l1', 'polarization']" in shown
    assert "Untyped" not in shown
