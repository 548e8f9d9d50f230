"""The plan of the house: who may know whom, read from the imports and not by importing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "lightning_slimga"
ROOT = Path(__file__).parent.parent

FLOORS = [
    {"graph", "search", "text"},
    {"running"},
    {"arguments"},
    {"surgery"},
    {"cost", "sparsity", "report"},
    {"callbacks"},
    {"cli", "__init__"},
]
"""Bottom up. Imports go down only, and within a floor no room knows another."""

ALLOWED = {
    ("cli", "__init__"): "the command line tells the version",
}
"""Rooms of one floor that know each other, with the reason."""

FOUNDATIONS = {"graph", "search", "text"}
"""These import nothing else of the package."""


def module_files() -> dict[str, Path]:
    """Every module of the package by its name without that of the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


FILES = module_files()


def imports_of(module: str) -> set[str]:
    """Full names of what a module imports anywhere in its text, also for types alone."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if own(inside) in FILES else node.module)
    return found


def own(name: str) -> str | None:
    """The name within the package, if it is one of its modules."""
    if name == PACKAGE:
        return "__init__"
    return name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else None


ARROWS = {
    module: {known for name in imports_of(module) if (known := own(name)) is not None}
    for module in FILES
}
"""Modules of the package that each module imports."""


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    (level,) = [level for level, rooms in enumerate(FLOORS) if room(module) in rooms]
    return level


def test_every_module_stands_on_a_floor() -> None:
    assert {room(module) for module in FILES} == set().union(*FLOORS)
    assert all(known in FILES for arrows in ARROWS.values() for known in arrows)


def test_imports_go_downwards_only() -> None:
    upward = {
        (module, known)
        for module, arrows in ARROWS.items()
        for known in arrows
        if floor(known) > floor(module)
    }
    assert not upward


def test_rooms_of_a_floor_do_not_know_each_other() -> None:
    aside = {
        (room(module), room(known))
        for module, arrows in ARROWS.items()
        for known in arrows
        if floor(known) == floor(module) and room(known) != room(module)
    }
    assert aside == set(ALLOWED)


def test_the_foundations_know_nothing_else_of_the_package() -> None:
    for module, arrows in ARROWS.items():
        if room(module) in FOUNDATIONS:
            assert {room(known) for known in arrows} <= {room(module)}, module


def circles() -> list[frozenset[str]]:
    """Sets of modules each of which leads to all others of its set: strongly connected ones."""
    reached = {}
    for module in FILES:
        seen, waiting = set(), [module]
        while waiting:
            for known in ARROWS[waiting.pop()] - seen:
                seen.add(known)
                waiting.append(known)
        reached[module] = seen
    together = {
        frozenset({other for other in reached[module] if module in reached[other]})
        for module in FILES
        if module in reached[module]
    }
    return sorted(together, key=sorted)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles() == []


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("lightning", {"callbacks"}),
        ("lightning_utilities", set()),
        ("pytorch_lightning", set()),
        ("deap", {"search", "callbacks"}),  # the callback takes a toolbox
        ("matplotlib", {"report"}),
    ],
)
def test_who_imports_what_others_have_written(package: str, rooms: set[str]) -> None:
    assert {room(m) for m in FILES if package in {i.partition(".")[0] for i in imports_of(m)}} == (
        rooms
    )


def test_the_search_does_not_import_torch() -> None:
    inside = [module for module in FILES if room(module) in {"search", "text", "report"}]
    assert not [m for m in inside if "torch" in {i.partition(".")[0] for i in imports_of(m)}]


def python(code: str) -> object:
    """What a fresh process prints, as JSON."""
    command = [sys.executable, "-c", f"import json, sys\n{code}"]
    return json.loads(subprocess.check_output(command, cwd=ROOT, text=True))


def test_without_a_trainer_lightning_is_not_loaded() -> None:
    loaded = python(
        f"import {PACKAGE}.graph, {PACKAGE}.search, {PACKAGE}.surgery\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    assert isinstance(loaded, list)
    lightning = [name for name in loaded if name.startswith(("lightning", "pytorch_lightning"))]
    assert lightning == [PACKAGE]


def test_the_face_shows_public_names_only() -> None:
    names = python(
        f"import {PACKAGE}\n{PACKAGE}.ChannelSurgery\n"
        f"print(json.dumps([dir({PACKAGE}), {PACKAGE}.__all__]))"
    )
    assert isinstance(names, list)
    shown, public = names
    assert shown == sorted([*public, "__version__"])
    assert not [name for name in public if name.startswith("_")]
