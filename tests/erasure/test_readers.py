"""Other processes that hold the vault: they lose it at their next fetch, or the erasure says that it is partial."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.errors import PartialErasure
from fedmem.vault.store import content_stores as stores

REPOSITORY = Path(__file__).parents[2]
READER = """
import sys, time
from fedmem.vault.vault import StaleReader, Vault
vault = Vault.open(sys.argv[1], subject="alice", write=False)
block = vault.blocks()[0].id
held = vault.block_rows(block)
print("holds", flush=True)
if sys.argv[2] == "idle":
    sys.stdin.readline()
while True:
    try:
        if sys.argv[2] == "tokens":
            assert vault.generation == 0, "stop"
        else:
            vault.block_rows(block)
    except (StaleReader, AssertionError) as error:
        print(type(error).__name__, len(vault.core.table.keys), flush=True)
        break
    time.sleep(0.01)
sys.stdin.readline()
"""
Start = Callable[[Path, str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start another process that reads the vault."""
    started: list[subprocess.Popen[str]] = []

    def run(root: Path, how: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", READER, str(root), how]
        started.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        )
        assert line(started[-1]) == "holds"
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def held(vaults):
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    vaults.block(vault)
    return vault


def erase(vault, topic: str) -> erasure.Outcome:
    planned = erasure.plan(vault, Scope.topic(topic))
    return erasure.execute(vault, planned, planned.digest)


@pytest.mark.parametrize(("how", "error"), [("fetch", "StaleReader"), ("tokens", "AssertionError")])
def test_a_reader_that_works_notices_and_the_erasure_completes(
    held, vaults, start: Start, how: str, error: str
) -> None:
    process = start(held.root, how)
    assert erase(held, vaults.TOPIC).state == "completed"
    assert line(process) == f"{error} 0"  # it forgot its keys


def test_an_idle_reader_makes_it_partial_until_it_notices(
    held, vaults, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PATIENCE", 0.2)
    process = start(held.root, "idle")
    with pytest.raises(PartialErasure) as caught:
        erase(held, vaults.TOPIC)
    assert caught.value.exit_code == 5
    (status,) = erasure.status(held)
    assert (status.state, status.receipt_path) == ("partial", None)
    found = erasure.verify(held, status.id).remnants
    assert [store for store, said in found.items() if said] == ["readers"]
    assert str(process.pid) in found["readers"][0]
    with pytest.raises(PartialErasure):
        erasure.resume(held)
    go_on(process)
    assert line(process) == "StaleReader 0"
    assert [outcome.state for outcome in erasure.resume(held)] == ["completed"]


def test_a_killed_reader_does_not_count(held, vaults, start: Start) -> None:
    process = start(held.root, "idle")
    process.kill()
    process.wait()
    assert erase(held, vaults.TOPIC).state == "completed"
    assert [path.name for path in (held.root / "leases").iterdir()] == [held.core.lease.path.name]


def test_a_reader_that_opened_after_it_does_not_count(held, vaults, start: Start) -> None:
    vaults.block(held, "another", b"other rows")
    erase(held, vaults.TOPIC)
    start(held.root, "idle")
    held.keep("third", 3)
    planned = erasure.plan(held, Scope.topic("third"))
    # This one is newer than the reader, which has not noticed.
    stale = erasure.status(held)[0].id
    assert erasure.verify(held, stale).is_clean
    assert planned.counts == {"retention": 1}


def test_every_opening_marks_the_generation_that_it_saw(held, vaults) -> None:
    reader = vaults.open(write=False)
    assert generations(held) == ["0", "0"]
    reader.close()
    assert generations(held) == ["0"]
    erase(held, vaults.TOPIC)
    assert generations(held) == ["1"]
    vaults.open(write=False)
    assert generations(held) == ["1", "1"]


def generations(vault) -> list[str]:
    return [mark.name.partition("-")[0] for mark in (vault.root / "leases").iterdir()]
