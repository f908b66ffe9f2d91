"""The lazy group: its list imports no command, and a command imports its own module alone."""

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fedmem.cli.lazy import LazyGroup

MODULE = """
import click
@click.command()
def one():
    click.echo("ran")
"""


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LazyGroup:
    """Two commands in modules of their own; the second one cannot be imported."""
    (tmp_path / "lazy_first.py").write_text(MODULE)
    (tmp_path / "lazy_second.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lazy_first", raising=False)
    lazy = {"second": ("lazy_second:one", "The second."), "first": ("lazy_first:one", "The first.")}
    return LazyGroup("demo", lazy=lazy)


def test_the_help_lists_all_and_imports_none(group: LazyGroup) -> None:
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0
    assert result.output.index("The first.") < result.output.index("The second.")
    assert not {"lazy_first", "lazy_second"} & set(sys.modules)


def test_a_command_imports_its_own_module_alone(group: LazyGroup) -> None:
    result = CliRunner().invoke(group, ["first"])
    assert (result.exit_code, result.output) == (0, "ran\n")
    assert "lazy_second" not in sys.modules
    assert CliRunner().invoke(group, ["first", "--help"]).exit_code == 0


def test_an_unknown_command_is_a_usage_error(group: LazyGroup) -> None:
    assert group.get_command(click.Context(group), "third") is None
    assert CliRunner().invoke(group, ["third"]).exit_code == 2


def test_commands_of_its_own_stand_beside_the_lazy_ones(group: LazyGroup) -> None:
    group.add_command(click.Command("middle"))
    assert group.list_commands(click.Context(group)) == ["first", "middle", "second"]
    assert group.get_command(click.Context(group), "middle") is not None
