"""Tests mirror the rooms, and public functions document their arguments; what is missing may only become less."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fedmem"
Function = ast.FunctionDef | ast.AsyncFunctionDef
WITHOUT_TESTS = {
    "": 3,
    "cli": 8,
    "coordinator": 4,
    "device": 11,
    "eval": 12,
    "federation": 13,
    "privacy": 4,
    "sdk": 7,
    "sim": 34,
}
"""Room -> number of its modules without a test file of their name. A new file lowers a number; never raise one."""
WITHOUT_ARGS = {
    "": 3,
    "cli": 80,
    "coordinator": 10,
    "device": 16,
    "eval": 10,
    "federation": 49,
    "privacy": 17,
    "sdk": 13,
    "sim": 100,
}
"""Room -> number of its public functions with parameters and no `Args:`. Lower a number; never raise one."""


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Room, path and syntax tree of every module that defines a function or a class; "" is the room of the root."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if any(isinstance(node, Function | ast.ClassDef) for node in tree.body):
            folders = path.relative_to(PACKAGE).parts[:-1]
            yield (folders[0] if folders else ""), path, tree


def is_mirrored(room: str, path: Path) -> bool:
    """Return True if a test file of the module's name lies in its room's folder of tests, at any depth."""
    name = path.parent.name if path.stem == "__init__" else path.stem
    tests = ROOT / "tests" / room
    return any(tests.rglob(f"test_{name}.py")) if room else (tests / f"test_{name}.py").exists()


def is_command(function: Function) -> bool:
    """Return True for a click command or group: its docstring is the text of `--help`."""
    return any(".command" in (text := ast.unparse(node)) or ".group" in text for node in function.decorator_list)


def lacks_args(function: Function) -> bool:
    """Return True for a public function with parameters whose docstring has no `Args:`."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    has_parameters = bool(parameters or arguments.vararg or arguments.kwarg)
    is_public = not function.name.startswith("_") and not is_command(function)
    return is_public and has_parameters and "Args:" not in (ast.get_docstring(function) or "")


def compare(missing: dict[str, list[str]], allowance: dict[str, int]) -> None:
    """Fail with the places of each room whose number differs from its allowance; a lower one is to be written down."""
    numbers = Counter({room: len(places) for room, places in missing.items()})
    differing = {room for room in {*numbers, *allowance} if numbers[room] != allowance.get(room, 0)}
    assert {room: (numbers[room], allowance.get(room, 0), missing.get(room)) for room in differing} == {}


def test_each_module_has_a_test_file_of_its_name() -> None:
    missing: dict[str, list[str]] = {}
    for room, path, _ in modules():
        if not is_mirrored(room, path):
            missing.setdefault(room, []).append(path.relative_to(PACKAGE).as_posix())
    compare(missing, WITHOUT_TESTS)


def test_public_functions_document_their_arguments() -> None:
    missing: dict[str, list[str]] = {}
    for room, path, tree in modules():
        for node in tree.body:
            if isinstance(node, Function) and lacks_args(node):
                missing.setdefault(room, []).append(f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno} {node.name}")
    compare(missing, WITHOUT_ARGS)
