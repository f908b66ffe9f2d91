"""Commands whose output cannot be written: the exit code says what happened, and nothing that exists once is lost."""

import errno
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem.cli import output
from fedmem.cli.main import main
from fedmem.erasure import Scope, receipt
from fedmem.errors import PartialErasure
from fedmem.sdk.places import vault_root
from fedmem.vault.vault import BlockInfo, Vault

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")
SHOWS = {
    "path": ("path",),
    "epsilon": ("privacy", "budget", *ANA),
    "help": ("erase", "--help"),
}
CHANGES = {
    "keep": ("erase", "keep", "health", "30", *ANA),
    "delete": ("block", "delete", "health", *ANA, "--yes"),
}
BAD = ("closed", "full", "cut", "narrow", "ascii")
UNWRITTEN = "The output could not be written"


def run(words: tuple[str, ...], out: str = "", err: str = "", unbuffered: bool = False) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command; `out` and `err` name what is wrong with a stream."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "COLUMNS")}
    env |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    env |= {"narrow": {"COLUMNS": "0"}, "ascii": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}}.get(out, {})
    closing = {"closed": ">&-"}.get(out, "") + {"closed": " 2>&-"}.get(err, "")
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-m", "fedmem.cli.main", *words]
    master, streams = None, []
    for kind in (out, err):
        if kind == "full":
            streams.append(os.open("/dev/full", os.O_WRONLY))
        elif kind == "cut":
            reading, writing = os.pipe()
            os.close(reading)
            streams.append(writing)
        elif kind == "narrow":
            master, terminal = pty.openpty()
            streams.append(terminal)
        else:
            streams.append(subprocess.PIPE)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=streams[0], stderr=streams[1], env=env) as process:
        for stream in streams:
            if stream != subprocess.PIPE:
                os.close(stream)
        shown = terminal_text(master) if master is not None else ""
        stdout, stderr = process.communicate(timeout=120)
    return process.returncode, (stdout or b"").decode() or shown, (stderr or b"").decode()


def terminal_text(master: int) -> str:
    """All that is written to a terminal."""
    parts = []
    try:
        while part := os.read(master, 4096):
            parts.append(part)
    except OSError:  # Linux says so when the last writer closed
        pass
    os.close(master)
    return b"".join(parts).decode()


def erasures() -> list[Any]:
    from fedmem.erasure import status

    with Vault.open(vault_root("ana"), subject="ana", write=False) as vault:
        return status(vault)


def is_the_opening(text: str) -> bool:
    """Return True if a 64-digit word of `text` opens the last receipt."""
    data, key = erasures()[-1].receipt_path.read_bytes(), (vault_root("ana") / "device.pub").read_bytes()
    content = receipt.verify(data, key)
    values = [word.strip('",') for word in text.split() if len(word.strip('",')) == 64]
    return any(receipt.opens(content, Scope.block("health"), bytes.fromhex(value)) for value in values)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", SHOWS)
def test_what_only_shows_ends_with_11_or_quietly(block: BlockInfo, name: str, bad: str) -> None:
    code, stdout, stderr = run(SHOWS[name], bad)
    refuses = bad == "full" or (bad == "closed" and name != "help")  # click prints no help to a closed stream
    assert code == (11 if refuses else 0), stderr
    assert stderr.count(UNWRITTEN) == refuses
    assert "Traceback" not in stderr
    assert "Exception" not in stderr
    if bad == "ascii" and name == "epsilon":
        assert "\\u03b5" in stdout


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_vault_ends_as_it_went(block: BlockInfo, name: str, bad: str) -> None:
    code, stdout, stderr = run(CHANGES[name], bad)
    refused = bad in ("closed", "full", "cut")
    assert code == 0, stderr
    assert stderr.count(UNWRITTEN) == refused
    assert "Traceback" not in stderr
    assert "Exception" not in stderr
    if name != "delete":
        return
    (one,) = erasures()
    assert (one.state, one.opening) == ("completed", "waiting" if refused else "delivered")
    assert is_the_opening(stdout) != refused
    if refused:
        assert f"fedmem receipt opening {one.id}" in stderr


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("again", ["opening", "resume"])
def test_a_lost_opening_is_given_again_until_it_arrives(block: BlockInfo, again: str, unbuffered: bool) -> None:
    assert run(CHANGES["delete"], "full", unbuffered=unbuffered)[0] == 0
    (one,) = erasures()
    words = ("receipt", "opening", one.id, *ANA) if again == "opening" else ("erase", "resume", *ANA)
    for bad in ("full", "closed"):
        run(words, bad, unbuffered=unbuffered)
        assert erasures()[0].opening == "waiting"
    code, stdout, _ = run((*words, "--json"))
    assert code == 0
    assert is_the_opening(stdout)
    assert erasures()[0].opening == "delivered"
    assert run(("receipt", "opening", one.id, *ANA))[0] == 3


@pytest.mark.parametrize("bad", ["closed", "full", "cut"])
def test_stderr_that_fails_breaks_nothing(block: BlockInfo, bad: str) -> None:
    code, stdout, _ = run(CHANGES["delete"], err=bad)
    assert code == 0
    assert is_the_opening(stdout)
    assert erasures()[0].opening == "delivered"
    assert run(("block", "show", "health", *ANA), err=bad)[0] == 3
    assert run(("block", "show", "health", *ANA), bad, bad)[0] == 3


def test_the_opening_file_of_a_person(block: BlockInfo, tmp_path: Path) -> None:
    run(CHANGES["delete"], "full")
    (one,) = erasures()
    code, stdout, _ = run(("receipt", "opening", one.id, *ANA))
    assert (code, len(stdout)) == (0, 65)
    (tmp_path / "opening").write_text(stdout)
    key = str(vault_root("ana") / "device.pub")
    words = ("receipt", "verify", str(one.receipt_path), "--key", key, "--opening", str(tmp_path / "opening"))
    assert run((*words, "--scope", "block:health"))[0] == 0
    assert run((*words, "--scope", "block:finance"))[0] == 6


def test_json_of_another_encoding_is_json(block: BlockInfo) -> None:
    topic = "été 😀 ε"
    with Vault.open(vault_root("ana"), subject="ana") as vault:
        vault.keep(topic, 3)
    assert json.loads(run(("erase", "keep", *ANA, "--json"), "ascii")[1])["data"] == {"days": {topic: 3.0}}
    assert "\\xe9t\\xe9 \\U0001f600 \\u03b5" in run(("erase", "keep", *ANA), "ascii")[1]


def fill_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every write to stdout in this process refused."""

    def write(stream: Any, text: str) -> None:
        if stream is sys.stdout:
            raise OSError(errno.ENOSPC, "")
        real(stream, text)

    real = output.write
    monkeypatch.setattr(output, "write", write)


def test_a_partial_erasure_stays_partial(block: BlockInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    def partial(*_: object, **__: object) -> None:
        raise PartialErasure("It is not finished.")

    fill_stdout(monkeypatch)
    monkeypatch.setattr("fedmem.erasure.execute", partial)
    result = CliRunner().invoke(main, ["block", "delete", "health", *ANA, "--yes"])
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.splitlines() == [
        "It is not finished.",
        f"{UNWRITTEN} (No space left on device). The changes of the command are kept.",
    ]
