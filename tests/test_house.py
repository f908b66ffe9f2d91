"""How the house is kept: names, openings of docstrings, borders of rooms, sizes of modules."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fedmem"
MOST_LINES = 400
RIDDLES = ("What", "Whether", "How", "Nobody", "The one")
"""Words that a docstring must not begin with: it begins with a verb, or with the noun of what a class or value is."""
Defined = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules() -> dict[str, ast.Module]:
    """Path below the repository -> syntax tree, of every module of the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def docstrings() -> Iterator[tuple[str, str]]:
    """Place and text of every docstring."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, Defined) and (text := ast.get_docstring(node, clean=True)):
                yield f"{path}:{getattr(node, 'lineno', 1)}", text


def room_of(path: str) -> str:
    """The room of a module's path, or of a dotted name; "" for a module beside the rooms."""
    parts = path.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def test_a_class_name_stands_once() -> None:
    places = defaultdict(list)
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_docstrings_open_with_a_verb_or_a_noun_and_no_riddle() -> None:
    assert [place for place, text in docstrings() if text.split("\n")[0].startswith(RIDDLES)] == []


def test_no_module_is_too_long() -> None:
    lines = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path in modules()}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_private_names_stay_in_their_room() -> None:
    crossing = [
        f"{path}:{node.lineno} {node.module}.{alias.name}"
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fedmem.")
        for alias in node.names
        if (alias.name.startswith("_") or node.module.rsplit(".", 1)[-1].startswith("_"))
        and room_of(node.module) != room_of(path)
    ]
    assert crossing == []


def test_every_room_says_what_it_is() -> None:
    for folder in sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))), folder.name
