"""Examples in docstrings run, and every public class has one."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest

import lightning_slimga

MODULES = [m.name for m in pkgutil.walk_packages(lightning_slimga.__path__, "lightning_slimga.")]
ROOMS = ("cost", "graph", "report", "running", "search", "sparsity", "surgery")
PUBLIC = [lightning_slimga, *(import_module(f"lightning_slimga.{room}") for room in ROOMS)]
CLASSES = {
    value.__name__: value
    for module in PUBLIC
    for value in (getattr(module, name) for name in getattr(module, "__all__", ()))
    if inspect.isclass(value) and not issubclass(value, Exception)
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(import_module(name), optionflags=options).failed == 0


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_an_example(name: str) -> None:
    assert ">>> " in inspect.getdoc(CLASSES[name])
