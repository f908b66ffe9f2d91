"""The project itself: what the wheel holds, what is pinned, and that the README's commands exist."""

import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedmem.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOWER_BOUND_ONLY = {"cryptography", "dp-accounting"}
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_wheel_holds_policies_and_scenarios_inside_the_package(wheel: set[str]) -> None:
    for folder in ("policies", "sims"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.toml")}
        assert files
        assert {f"fedmem/{name}" for name in files} <= wheel


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: set[str]) -> None:
    package = {path for path in (ROOT / "fedmem").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in package} <= wheel
    assert {name.split("/")[0] for name in wheel} == {"fedmem", f"fedmem-{PROJECT['version']}.dist-info"}


def requirements() -> list[Requirement]:
    """Every requirement of the project and its extras, but its own extras."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    return [found for found in map(Requirement, texts) if found.name != PROJECT["name"]]


def pins() -> dict[str, Requirement]:
    """Constraints by name."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in found}


def test_pyproject_has_lower_bounds_and_constraints_have_versions() -> None:
    for wanted in requirements():
        name = canonicalize_name(wanted.name)
        assert {one.operator for one in wanted.specifier} == {">="}, name
        operators = {one.operator for one in pins()[name].specifier}
        assert operators == ({">="} if name in LOWER_BOUND_ONLY else {"=="}), name


def test_everything_else_is_pinned_exactly() -> None:
    loose = {name for name, one in pins().items() if {s.operator for s in one.specifier} != {"=="}}
    assert loose == LOWER_BOUND_ONLY


def test_no_symlink_and_no_path_edit() -> None:
    folders = [ROOT / name for name in ("fedmem", "server", "client", "policies", "sims", "tests")]
    files = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    assert [path for path in files if path.is_symlink()] == []
    edits = re.compile(r"sys\.path\.(insert|append|extend)")
    assert [path for path in files if path.suffix == ".py" and edits.search(path.read_text("utf-8"))] == []


SHELL = "".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL))
COMMANDS = [line for line in SHELL.splitlines() if line.startswith("fedmem ")]


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: "-".join(line.split()[1:3]))
def test_readme_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    context, command = click.Context(main), main
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    given = {word for word in words if word.startswith("-")}
    assert given <= {option for parameter in command.params for option in parameter.opts}
    required = [p for p in command.params if isinstance(p, click.Option) and p.required]
    assert all(given & set(option.opts) for option in required)


def test_readme_snippet_is_valid_code() -> None:
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        compile(code, "README.md", "exec")
    assert len(COMMANDS) >= 10


def test_readme_names_tests_that_exist() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| I")]
    assert len(rows) == 10
    for row in rows:
        named = re.findall(r"`([\w/]+(?:\.py|/))`", row)
        assert named, row
        folder = Path(named[0]).parent if named[0].endswith(".py") else Path(named[0])
        assert all((ROOT / (name if "/" in name else folder / name)).exists() for name in named), row
