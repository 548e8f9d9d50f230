from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lightning_slimga import __version__
from lightning_slimga.cli import main

NETWORKS = """
from __future__ import annotations
import lightning.pytorch as pl
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, width: int = 4, kind: str = "relu") -> None:
        super().__init__()
        act = {"relu": nn.ReLU, "tanh": nn.Tanh}[kind]()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), act)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        return self.head(self.net(x))


class Lit(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Plain(6)
        self.example_input_array = torch.zeros(2, 3, 8, 8)

    def forward(self, x):
        return self.net(x)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, tokens, scale):
        return self.mlp(self.table(tokens)) * scale


def make() -> nn.Module:
    return Plain(5)


class Holder:
    Inner = Plain
    number = 3


def no_module() -> int:
    return 3
"""


@pytest.fixture(autouse=True)
def _networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module in the working directory."""
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["inspect", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def channels(report: dict[str, Any]) -> dict[str, int]:
    return {layer["name"]: layer["channels"] for layer in report["layers"]}


def test_a_class_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    report = inspected(capsys, "my_networks:Plain", "--input", "1,3,8,8")
    assert channels(report) == {"net.0": 4}
    # By hand: 4 x 3 x 3 x 3 x 36 positions, and 2 x 4 x 36.
    assert report["macs"] == 4 * 27 * 36 + 2 * 4 * 36
    assert report["params"] == 4 * 27 + 4 + 4 + 4 + 2 * 4 + 2
    assert {row["name"] for row in report["frozen"]} == {"head"}


def test_arguments_of_the_class(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "width=7", "--set", "kind=tanh")
    report = inspected(capsys, "my_networks:Plain", "--input", "1,3,8,8", *settings)
    assert channels(report) == {"net.0": 7}


def test_a_lightning_module_knows_its_input(capsys: pytest.CaptureFixture[str]) -> None:
    report = inspected(capsys, "my_networks:Lit")
    assert channels(report) == {"net.net.0": 6}
    assert report["macs"] == 2 * (6 * 27 * 36 + 2 * 6 * 36)


def test_a_function_and_a_nested_name(capsys: pytest.CaptureFixture[str]) -> None:
    report = inspected(capsys, "my_networks:make", "--input", "1,3,8,8")
    assert channels(report) == {"net.0": 5}
    report = inspected(capsys, "my_networks:Holder.Inner", "--input", "1,3,8,8")
    assert channels(report) == {"net.0": 4}


@pytest.mark.parametrize(
    "inputs", [("1,6:int64", "1,6,1"), ("scale=1,6,1:float32", "tokens=1,6:int64")]
)
def test_several_inputs_by_position_or_by_name(
    inputs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = inspected(capsys, "my_networks:Tokens", *(f"--input={text}" for text in inputs))
    assert channels(report)["mlp.0"] == 16


def test_a_model_of_torchvision_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "torchvision:resnet18", "--input", "1,3,64,64"]) == 0
    shown = capsys.readouterr().out
    assert "layer4.1.conv1" in shown
    assert "11.7 M parameters" in shown
    assert "fc: reaches the output" in shown


def test_a_model_of_timm_knows_its_input(capsys: pytest.CaptureFixture[str]) -> None:
    report = inspected(capsys, "timm:resnet10t", "--set", "num_classes=10")
    assert channels(report)["layer1.0.conv1"] == 64


def test_options_reach_the_analysis(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--input", "1,3,8,8")
    assert channels(inspected(capsys, "my_networks:Plain", *shape, "--ignore", "net.*")) == {}
    tokens = ("my_networks:Tokens", "--input=1,6:int64", "--input=1,6,1")
    assert channels(inspected(capsys, *tokens, "--only-scaled")) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50",), "like torchvision:resnet50, timm:resnet50 or path.to.module:Class, but"),
        (("torchvision:resnet5",), "torchvision:resnet5 cannot be made with (): ValueError"),
        (("no_such_module:Net",), "no_such_module cannot be imported: No module named"),
        (("my_networks:Nothing",), "my_networks has no 'Nothing'"),
        (("my_networks:no_module",), "my_networks:no_module makes a int, not an nn.Module"),
        (("my_networks:Holder.number",), "cannot be made with ()"),
        (("my_networks:Plain",), "Expected --input, the shape of what one forward call receives"),
        (("my_networks:Plain", "--set", "widht=3"), "unexpected keyword argument 'widht'"),
        (("my_networks:Plain", "--set", "width"), "argument --set: expected KEY=VALUE"),
        (("my_networks:Plain", "--input", "1,3,x"), "expected positive sizes like 1,3,224,224"),
        (("my_networks:Plain", "--input", "1,0"), "expected positive sizes like 1,3,224,224"),
        (("my_networks:Plain", "--input", "1,3:long9"), "a type of torch, but got '1,3:long9'"),
        (("my_networks:Plain", "--input=1,3,8,8", "--input=x=1"), "every --input a name, or none"),
        (("my_networks:Plain", "--input=1,5,8,8"), "my_networks:Plain cannot be inspected: "),
        (("my_networks:Plain", "--input=1,3,8,8", "--ignore=body.*"), "body.*"),
    ],
)
def test_mistakes_are_named(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)


def test_tokens_without_a_type_are_hinted_at(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "my_networks:Tokens", "--input=1,6", "--input=1,6,1")
    assert "embedding). An input is of float32 unless its type is given, as SHAPE:DTYPE" in said
    assert "--input 1,64:int64" in said
    said = refused(capsys, "my_networks:Plain", "--input=1,5,8,8")  # here the shape is wrong
    assert "DTYPE" not in said


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", "--help"])
    shown = capsys.readouterr().out
    for word in ("torchvision:NAME", "timm:NAME", "example_input_array", "--set KEY=VALUE"):
        assert word in shown
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_entry_points_exist() -> None:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    targets = [project["scripts"]["slimga"]]
    targets += [name for group in project["entry-points"].values() for name in group.values()]
    assert len(targets) == 3
    for target in targets:
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))
