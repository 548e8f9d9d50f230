"""The table of what the package touches of others' private API is true, and the only such place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lightning
import pytest
from torch import nn

import lightning_slimga
from lightning_slimga.callbacks import internals

PACKAGE = Path(lightning_slimga.__file__).parent
ROOM = Path(internals.__file__).parent
TABLE = {
    name: set(files.split(", "))
    for name, files in re.findall(r"^``(\w+)`` [^|]*\| ([\w, ]+) \|", internals.__doc__ or "", re.M)
}


def private_names(path: Path) -> set[str]:
    """Names with a leading underscore: attributes of others, and names said but not defined."""
    touched, said, own = set(), set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (own if mine else touched).add(node.attr)
        elif isinstance(node, ast.keyword):
            said.add(node.arg or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            said.add(node.value)
        elif isinstance(node, ast.alias):
            said.add(node.name)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
    return {name for name in touched | said - own if re.fullmatch(r"_[A-Za-z]\w*", name)}


def of_lightning() -> set[str]:
    """Private names that Lightning's classes and modules define, and torch's modules do not."""
    names: set[str] = set()
    for folder in ("pytorch", "fabric"):
        for path in (Path(lightning.__file__).parent / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            names.update(re.findall(r"(?:self\.|def |class )(_[A-Za-z]\w*)", text))
    return names - set(dir(nn.Module())) - set(vars(nn.Module()))


@pytest.fixture(scope="module")
def lightnings() -> set[str]:
    found = of_lightning()
    assert {"_results", "_combined_loader", "_ResultCollection"} <= found
    return found


def test_the_table_tells_what_is_touched_and_where() -> None:
    found: dict[str, set[str]] = {}
    for path in ROOM.glob("*.py"):
        for name in private_names(path) - {"_pytree", "_dynamo"}:
            found.setdefault(name, set()).add(path.stem)
    assert found == TABLE


def test_lightnings_private_names_occur_nowhere_else(lightnings: set[str]) -> None:
    # Who does not know Lightning (tests/test_rooms.py) can only mean names of his own.
    elsewhere = [path for path in ROOM.parent.rglob("*.py") if ROOM not in path.parents]
    assert len(elsewhere) > 15
    found = {str(path.relative_to(PACKAGE)): private_names(path) & lightnings for path in elsewhere}
    assert {path: names for path, names in found.items() if names} == {}
