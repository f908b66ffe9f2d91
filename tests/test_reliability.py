"""RELIABILITY.md names every invariant, and every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


def missing(text: str) -> list[str]:
    """Tests that a text names and that are not there."""
    return [f"{file}::{name}" for file, name in NAMED.findall(text) if name not in _tests(ROOT / file)]


def _tests(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    found: set[str] = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def rows() -> list[list[str]]:
    """The table without its head."""
    lines = (ROOT / "RELIABILITY.md").read_text("utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")][1:]


def test_every_test_that_is_named_exists() -> None:
    assert missing((ROOT / "RELIABILITY.md").read_text("utf-8")) == []


def test_every_row_names_a_test() -> None:
    assert [row[0] for row in rows() if len(row) != 3 or not NAMED.search(row[1])] == []


@pytest.mark.parametrize("number", range(1, 11))
def test_every_invariant_has_a_row(number: int) -> None:
    assert any(row[0].startswith(f"**I{number}** ") for row in rows())


def test_a_name_that_is_not_there_is_noticed() -> None:
    here, gone = "tests/test_reliability.py::test_every_row_names_a_test", "tests/test_reliability.py::test_gone"
    inside = "tests/vault/test_backup_registry.py::TestErasure::test_one_out_of_reach_is_named_and_its_key_is_gone"
    assert missing(f"`{here}` `{gone}` `tests/no.py::test_x` `{inside}`") == [gone, "tests/no.py::test_x"]
