"""The SuperNode as a child: what it is told, and that it ends with the vault process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmem.device import supernode
from fedmem.device.supernode import PASSED, Options, environment
from fedmem.errors import NothingMatched, UsageError
from fedmem.federation.offline import SWITCHES
from fedmem.federation.runtime import DEVICE, Runtime

NODE = """#!{python}
import os, sys, time
open({out!r}, "w").write(repr((os.getpid(), sys.argv[1:], dict(os.environ))))
os.rename({out!r}, {out!r} + ".whole")
time.sleep(60)
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the SuperNode's place; it writes down its arguments and environment."""
    program, out = tmp_path / "node", tmp_path / "seen"
    program.write_text(NODE.format(python=sys.executable, out=str(out)))
    program.chmod(0o700)
    monkeypatch.setattr(supernode, "program", lambda: str(program))
    return tmp_path / "seen.whole"


def seen(file: Path) -> tuple[int, list[str], dict[str, str]]:
    limit = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < limit
        time.sleep(0.02)
    found: tuple[int, list[str], dict[str, str]] = eval(file.read_text())  # our own file
    return found


def test_it_gets_public_settings_the_switches_and_the_runtime_folder_alone(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "x")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    options = Options("h:1", root_certificates=tmp_path / "ca.pem", trusted_entities=tmp_path / "keys", port=9100)
    with supernode.supernode(Runtime(tmp_path / "run"), options, subprocess.DEVNULL) as process:
        pid, words, given = seen(node)
        assert pid == process.pid
        assert os.getpgid(pid) != os.getpgid(0)  # Ctrl-C reaches the vault process, which ends it in order
    assert process.returncode == -signal.SIGTERM
    assert words == [
        "--superlink", "h:1", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", "9100",
        "--root-certificates", str(tmp_path / "ca.pem"), "--trusted-entities", str(tmp_path / "keys"),
    ]  # fmt: skip
    assert {*given} - {"LC_CTYPE"} <= {*PASSED, *SWITCHES, DEVICE}
    assert given[DEVICE] == str(tmp_path / "run")
    assert {name: given[name] for name in SWITCHES} == SWITCHES
    assert given["PATH"].startswith(f"{tmp_path}{os.pathsep}")


def test_wrong_options_are_refused() -> None:
    for superlink in ("", "host", "host:port", ":1"):
        with pytest.raises(UsageError):
            Options(superlink)
    with pytest.raises(UsageError):
        Options("h:1", insecure=True, root_certificates=Path("ca.pem"))


def test_without_flower_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supernode, "PROGRAM", "flower-that-nobody-has")
    with pytest.raises(NothingMatched, match="fedmem\\[fl\\]"):
        environment({}, Runtime(tmp_path))
