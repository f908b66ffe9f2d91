"""Faults that the stress has shown, each as a small program of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmem.vault.vault import ALL, NewRecord, Vault

CHILD = """
import os, sys
import numpy as np
from fedmem.vault.vault import ALL, NewRecord, Vault
root = sys.argv[1]
def note(text):
    return NewRecord(text, "health", (), np.ones(4, np.float32), "r")
vault = Vault.open(root, subject="alice")
vault.add_records([note("parent")])
if os.fork():
    if sys.argv[2] == "closes":
        vault.close()
    os._exit(0)
os.read(0, 1)
try:
    with Vault.open(root, subject="alice") as own:
        own.add_records([note("child")])
    print("added")
except BaseException as error:
    print(type(error).__name__)
"""


def note(text: str) -> NewRecord:
    return NewRecord(text, "health", (), np.ones(4, np.float32), "r")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    Vault.create(tmp_path / "v", subject="alice").close()
    return tmp_path / "v"


@pytest.mark.parametrize(
    ("parent", "third"),
    [
        ("closes", "closes"),
        ("is killed", "closes"),
        ("is killed", "is killed"),
        ("closes", "is killed"),
    ],
)
def test_a_child_opens_the_vault_after_others_have_written(root: Path, parent: str, third: str) -> None:
    command = [sys.executable, "-c", CHILD, str(root), parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        program.wait()  # for the parent alone: the child waits for a letter
        if third == "is killed":
            add_and_die(root)
        else:
            with Vault.open(root, subject="alice") as vault:
                vault.add_records([note("third")])
        answer, _ = program.communicate("x")
    with Vault.open(root, subject="alice") as vault:
        texts = [record.text for record in vault.records(ALL)]
    assert (answer.strip(), texts) == ("added", ["parent", "third", "child"])


def add_and_die(root: Path) -> None:
    """Add a record in another process, which is then killed: its log stays."""
    code = CHILD[: CHILD.index("if os.fork")].replace('"parent"', '"third"') + "os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)


def test_a_reader_beside_a_new_epoch_reads_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Vault.open(root, subject="alice") as writer, Vault.open(root, subject="alice", write=False) as reader:
        writer.add_records([note("one")])
        load = reader.core.keystore.load

        def rotated_first(name: str) -> bytes:
            monkeypatch.undo()
            os.environ["FEDMEM_HOME"] = str(root.parent / "home")
            run = writer.begin_run("health", "r", {}, "data", [], {"sigma": 1.0})
            writer.finish_run(run, "health", "r", b"rows", 1, 1, 1)  # a new epoch, and no erasure
            return load(name)

        monkeypatch.setattr(reader.core.keystore, "load", rotated_first)
        assert [record.text for record in reader.records(ALL)] == ["one"]
