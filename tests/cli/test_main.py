"""The root: lazy imports, envelopes, and an exit code for every way to end."""

import errno
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from fedmem import errors
from fedmem.cli import path as path_noun
from fedmem.cli.main import NOUNS, main

HEAVY = {"torch", "transformers", "flwr", "ray", "faiss", "opacus", "sqlalchemy", "rich", "numpy"}
PROBE = """
import resource, sys
sys.argv = ["fedmem", *{words!r}]
try:
    from fedmem.cli.main import main
    main()
except SystemExit:
    pass
usage = resource.getrusage(resource.RUSAGE_SELF)
print("|".join([str(usage.ru_utime + usage.ru_stime), *sys.modules]), file=sys.stderr)
"""


def probe(*words: str) -> tuple[float, set[str]]:
    """CPU seconds and top-level modules of one command in its own process."""
    code = PROBE.format(words=list(words))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = result.stderr.strip().splitlines()[-1].split("|")
    return float(seconds), {name.partition(".")[0] for name in modules}


def test_help_is_quick_and_light() -> None:
    best = min((probe("--help") for _ in range(3)), key=lambda pair: pair[0])
    assert best[0] < 0.3
    assert not best[1] & HEAVY


@pytest.mark.parametrize("noun", sorted(NOUNS))
def test_help_of_a_noun_is_light(noun: str) -> None:
    assert not probe(noun, "--help")[1] & HEAVY


def test_import_is_light() -> None:
    code = "import sys, fedmem, fedmem.cli, fedmem.sdk; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in names} & HEAVY


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        return [(words, command)]
    ctx = click.Context(command)
    found = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
    return [leaf for name, sub in found if sub for leaf in leaves(sub, (*words, name))]


def test_every_command_has_json_an_example_and_help() -> None:
    commands = leaves(main)
    assert {" ".join(words) for words, _ in commands} == {
        *("sim run", "sim list", "sim show", "sim compare", "route explain", "vault check", "vault repair"),
        *("block list", "block show", "block delete"),
        *("privacy report", "privacy ledger verify", "privacy audit"),
        *("privacy budget", "receipt show", "receipt verify", "receipt export", "receipt opening", "doctor", "path"),
        *("erase plan", "erase run", "erase verify", "erase status", "erase resume", "erase cancel"),
        *("erase due", "erase keep"),
        *("client train", "client status", "client pause", "client cancel", "client egress", "client run"),
        *("keys status", "keys rotate", "keys change-passphrase", "backup create", "backup list", "backup verify"),
        *("keys recovery create", "keys recovery test", "keys recovery restore", "backup restore"),
        *("receipt items", "vault remove"),
        *("block migrate", "anchor train", "bank build", "bank train", "bank show", "bank verify", "eval unlearn"),
    }
    for words, command in commands:
        assert "--json" in [name for param in command.params for name in param.opts], words
        assert f"fedmem {' '.join(words)}" in (command.epilog or ""), words
        assert command.help, words


CASES = [
    (errors.UsageError("s"), 2),
    (errors.NothingMatched("s"), 3),
    (errors.BudgetExceeded("s"), 4),
    (errors.PartialErasure("s"), 5),
    (errors.VerificationFailed("s"), 6),
    (errors.Busy("s"), 7),
    (errors.KeystoreError("s"), 8),
    (errors.VersionMismatch("s"), 9),
    (errors.RemoteError("s"), 10),
    (errors.StorageError("s"), 11),
    (errors.QualityGateFailed("s"), 12),
    (OSError(errno.ENOSPC, "full"), 11),
    (OSError(errno.EROFS, "read-only"), 11),
    (click.Abort(), 4),
    (ModuleNotFoundError("No module named 'torch'", name="torch"), 2),
    (ModuleNotFoundError("No module named 'fedmem.x'", name="fedmem.x"), 1),
    (ValueError("a private word"), 1),
]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(path_noun.path, "callback", fail)


@pytest.mark.parametrize(("error", "code"), CASES, ids=lambda value: type(value).__name__)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    failing(monkeypatch, error)
    result = CliRunner().invoke(main, ["path", "--json"])
    assert result.exit_code == code
    envelope = json.loads(result.stdout)
    assert envelope["schema"] == "fedmem.error/1"
    assert envelope["data"]["exit_code"] == code
    assert envelope["data"]["message"] == result.stderr.strip()
    assert "Traceback" not in result.output
    assert "private" not in result.output


def test_without_json_an_error_leaves_stdout_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, errors.Busy("Another process holds it."))
    result = CliRunner().invoke(main, ["path"])
    assert (result.exit_code, result.stdout, result.stderr) == (7, "", "Another process holds it.\n")


def test_debug_shows_the_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ValueError("inner"))
    result = CliRunner().invoke(main, ["--debug", "path"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert CliRunner().invoke(main, ["path"]).exit_code == 130


@pytest.mark.parametrize("words", [["nope"], ["path", "--nope"], ["sim", "nope"], ["receipt", "verify"]])
def test_usage(words: list[str]) -> None:
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["data"]["error"] == "UsageError"


def test_help_and_version_end_with_zero() -> None:
    assert CliRunner().invoke(main, ["--version"]).exit_code == 0
    assert CliRunner().invoke(main, ["path", "--help"]).exit_code == 0
