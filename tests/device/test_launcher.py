"""A program that ends with its parent."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmem.device import supernode

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


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_ends_with_a_vault_process_that_is_killed(node: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fedmem.device import supernode\n"
        "from fedmem.federation.runtime import Runtime\n"
        "supernode.program = lambda: sys.argv[1]\n"
        "with supernode.supernode(Runtime(Path('/nowhere')), supernode.Options('h:1', insecure=True)): time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "node")])
    pid = seen(node)[0]
    assert not gone(pid)
    parent.kill()
    parent.wait()
    limit = time.monotonic() + 5
    while not gone(pid):
        assert time.monotonic() < limit
        time.sleep(0.02)
