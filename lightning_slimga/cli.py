"""`slimga inspect MODEL`: what can be removed from a network, and why the rest cannot."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_slimga import __version__
from lightning_slimga.surgery.channel_surgery import ChannelSurgery

_MODEL = """what to look at:
  torchvision:NAME     a model of torchvision, as in torchvision.models.get_model
  timm:NAME            a model of timm, as in timm.create_model
  path.to.module:NAME  any class (or function) that makes an nn.Module or LightningModule;
                       modules in the current directory are found"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what was typed after `slimga`; None: that of this process.

    Returns:
        The exit code; wrong arguments end the process with code 2 and a line that names them.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        model = build(given.model, dict(given.set))
        inputs = example_inputs(model, given.input)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            surgery = ChannelSurgery(
                model,
                inputs,
                ignore=given.ignore,
                only_scaled=given.only_scaled,
                allow_approximate=given.allow_approximate,
                min_channels=given.min_channels,
                round_to=given.round_to,
            )
    except CommandError as error:
        parser.error(str(error))
    except Exception as error:  # of the user's network, on what the user has given
        told = f"{type(error).__name__}: {error}"
        parser.error(f"{given.model} cannot be inspected: {told}{_hint(told, given.input)}")
    print(json.dumps(surgery.report(), indent=2, ensure_ascii=False) if given.json else surgery)
    return 0


class CommandError(ValueError):
    """Something that was typed cannot be right; the message names it."""


def build(model: str, settings: dict[str, Any]) -> nn.Module:
    """Make the network that the command line names, with fresh weights.

    Args:
        model: see `slimga inspect --help`.
        settings: arguments of the class or function.

    Raises:
        CommandError: when there is no such thing, or it makes no module.
    """
    where, colon, name = model.partition(":")
    if not (where and colon and name):
        raise CommandError(
            "Expected argument `model` to be like torchvision:resnet50, timm:resnet50 or"
            f" path.to.module:Class, but got {model!r}."
        )
    try:
        made = _maker(where, name)(**settings)
    except CommandError:
        raise
    except Exception as error:  # whatever a user's constructor raises
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise CommandError(
            f"{model} cannot be made with ({given}): {type(error).__name__}: {error}."
            " Arguments are given by --set key=value."
        ) from error
    if not isinstance(made, nn.Module):
        raise CommandError(f"{model} makes a {type(made).__name__}, not an nn.Module.")
    return made


def _maker(where: str, name: str) -> Any:
    if where == "torchvision":
        models = _import("torchvision.models")
        return lambda **settings: models.get_model(name, **{"weights": None, **settings})
    if where == "timm":
        timm = _import("timm")
        return lambda **settings: timm.create_model(name, **{"pretrained": False, **settings})
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = _import(where)
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandError(f"{where} has no {name!r}.")
        found = getattr(found, part)
    return found


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CommandError(f"{module} cannot be imported: {error}.") from error


def example_inputs(model: nn.Module, given: Sequence[tuple[str, Tensor]]) -> Any:
    """Take what one forward call receives from the command line, or from the module itself.

    Args:
        model: the network; asked for `example_input_array` (LightningModule) and `default_cfg`
            (timm) if nothing is given.
        given: names (empty: positional) and tensors.

    Raises:
        CommandError: when nothing says what the network receives.
    """
    if given:
        named = {name: tensor for name, tensor in given if name}
        positional = tuple(tensor for name, tensor in given if not name)
        if named and positional:
            raise CommandError("Give every --input a name, or none.")
        return named or positional
    own = getattr(model, "example_input_array", None)
    if own is not None:
        return own
    size = (getattr(model, "default_cfg", None) or {}).get("input_size")
    if size is not None:
        return torch.randn(1, *size)
    raise CommandError(
        "Expected --input, the shape of what one forward call receives (--input 1,3,224,224),"
        " because the network has no `example_input_array`."
    )


def _hint(told: str, given: Sequence[tuple[str, Tensor]]) -> str:
    """What may help, where a network has got floating-point numbers for indices."""
    floating = any(tensor.is_floating_point() for _, tensor in given)
    if not (
        floating and re.search(r"\b(ind(ex|ices)|long|int(64)?|dtype|scalar type)\b", told, re.I)
    ):
        return ""
    end = "" if told.endswith(".") else "."
    return (
        f"{end} An input is of float32 unless its type is given, as SHAPE:DTYPE: --input"
        " 1,64:int64 for tokens and other indices."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slimga", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True)
    inspect = commands.add_parser(
        "inspect",
        help="list the removable layers of a network, and for the rest the reason",
        description="List the removable layers of a network, and for the rest the reason.",
        epilog=_MODEL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_network(inspect)
    _add_surgery(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_network(inspect: argparse.ArgumentParser) -> None:
    """Which network it is, and how it is built and run."""
    inspect.add_argument("model", help="torchvision:NAME, timm:NAME or path.to.module:NAME")
    inspect.add_argument(
        "--input",
        action="append",
        type=_input,
        default=[],
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="what one forward call receives, once per argument: 1,3,224,224 or tokens=1,64:int64;"
        " default: the module's own `example_input_array`",
    )
    inspect.add_argument(
        "--set",
        action="append",
        type=_setting,
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the class; values are Python literals, or else text",
    )


def _add_surgery(inspect: argparse.ArgumentParser) -> None:
    """The options of `ChannelSurgery`."""
    inspect.add_argument(
        "--ignore", action="append", default=[], metavar="PATTERN", help="modules to leave whole"
    )
    inspect.add_argument(
        "--only-scaled", action="store_true", help="leave layers without a scaling factor γ whole"
    )
    inspect.add_argument(
        "--allow-approximate", action="store_true", help="also offer channels under LayerNorm"
    )
    inspect.add_argument(
        "--min-channels", type=int, default=1, metavar="N", help="fewest channels of a layer"
    )
    inspect.add_argument(
        "--round-to", type=int, default=1, metavar="N", help="layers keep a multiple of N, or all"
    )


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, but got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _input(text: str) -> tuple[str, Tensor]:
    name, _, rest = text.rpartition("=")
    shape, _, kind = rest.partition(":")
    dtype = getattr(torch, kind or "float32", None)
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or not isinstance(dtype, torch.dtype):
        raise argparse.ArgumentTypeError(
            f"expected positive sizes like 1,3,224,224 and a type of torch, but got {text!r}"
        )
    if dtype.is_floating_point:
        return name, torch.randn(sizes).to(dtype)
    return name, torch.zeros(sizes, dtype=dtype)


if __name__ == "__main__":
    sys.exit(main())
