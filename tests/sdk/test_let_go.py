"""Programs that let go of a vault: what is left in their memory, and whether an erasure waits for them.

Each program runs in a process of its own and is told by lines on its standard input what to do. The test looks into its
memory: an erased block that is still there must make the erasure partial.
"""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmem.errors import PartialErasure
from fedmem.sdk.client import Client
from fedmem.training.release import Release
from fedmem.vault.store import content_stores
from fedmem.vault.vault import BlockInfo
from tests.heap import words_left

HEALTH = "My doctor prescribed new tablets for my blood pressure after the visit on Monday."
PROMPT = "My doctor prescribed tablets and the diagnosis of my blood pressure is"
PROGRAM = """
import ctypes, gc, os, sys, time
from fedmem.errors import FedmemError
from fedmem.sdk.client import Client

client, stream = None, None

def wait_for_ever():
    while True:
        time.sleep(1)

for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    answer = "done"
    try:
        if word == "open":
            client = Client.open("ana", release=rest or None, write=False)
        elif word == "search":
            client.search("tablets", k=3)
        elif word == "generate":
            client.generate(PROMPT, max_new_tokens=12)
        elif word == "stream":
            stream = client.generate(PROMPT, max_new_tokens=200, stream=True)
            next(stream)
        elif word == "next":
            next(stream)
        elif word == "abandon":
            stream = None
        elif word == "drop":
            stream = client = None
            gc.collect()
        elif word == "close":
            client.close()
        elif word == "erase":
            with Client.open("ana") as writer:
                answer = writer.erase.plan(topic="health").execute().state
        elif word == "resume":
            with Client.open("ana") as writer:
                answer = " ".join(outcome.state for outcome in writer.erase.resume())
        elif word == "fork":  # this process ends; its child lives on
            child = os.fork() if rest == "python" else ctypes.PyDLL(None).fork()
            if child:
                print(child, flush=True)
                os._exit(0)
            wait_for_ever()
        elif word == "pid":
            answer = str(os.getpid())
    except FedmemError as error:
        answer = f"{type(error).__name__} {error.exit_code}"
    print(answer, flush=True)
""".replace("PROMPT", repr(PROMPT))
NAMESPACE = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")


class Program:
    """A program in another process."""

    def __init__(self, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def __call__(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(vault_with_block: object) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def run(*prefix: str) -> Program:
        started.append(Program(*prefix))
        return started[-1]

    yield run
    for program in started:
        program.end()


class Needles:
    """The private bytes of the test's vault."""

    def __init__(self, client: Client, block: BlockInfo) -> None:
        vault = client._vault
        self.block = bytes(vault.block_rows(block.id))[-4 * 2 * 3 * 4 * 64 :]
        self.keys = b"".join(bytearray(key) for key in vault.core.table.keys.values())
        self.root = vault.root

    def left(self, process: int, name: str = "block") -> int:
        """The number of words of the block, or of the keys, in the memory of a process."""
        try:
            return words_left(process, {name: getattr(self, name)})[name]
        except PermissionError:
            pytest.skip("the memory of another process cannot be read here")


@pytest.fixture
def vault_with_block(release: Release, finish_block: Callable[..., BlockInfo]) -> Needles:
    """A vault with records and one block, closed; its private bytes."""
    with Client.open("ana", keystore="keyfile", release=release) as client:
        client.add(HEALTH, topic="health")
        return Needles(client, finish_block(client._vault, "health", release.digest, scale=1.0))


ONE_KEY = 4  # words, of more than 100: the cipher's own copy of the last key, on the stack or in freed memory


def erase() -> str:
    with Client.open("ana") as client:
        try:
            return str(client.erase.plan(topic="health").execute().state)
        except PartialErasure as error:
            return f"partial {error.exit_code}"


def resume() -> list[str]:
    with Client.open("ana") as client:
        try:
            return [outcome.state for outcome in client.erase.resume()]
        except PartialErasure:
            return ["partial"]


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_stores, "PATIENCE", 0.3)


@pytest.fixture
def reader(start: Callable[..., Program], release: Release) -> Program:
    """A program that has opened the vault for reading."""
    program = start()
    assert program(f"open {release.root}") == "done"
    return program


@pytest.mark.parametrize("end", ["close", "abandon", "drop"])
def test_a_stream_that_ends_early_leaves_no_row(reader: Program, vault_with_block: Needles, end: str) -> None:
    assert reader("stream") == "done"
    assert vault_with_block.left(reader.process.pid) > 500  # the test can see them
    assert reader(end) == "done"
    assert vault_with_block.left(reader.process.pid) == 0
    assert (vault_with_block.left(reader.process.pid, "keys") <= ONE_KEY) == (end != "abandon")
    assert erase() == ("partial 5" if end == "abandon" else "completed")  # abandoned: the client is still open


def test_an_answer_leaves_no_row(reader: Program, vault_with_block: Needles) -> None:
    assert reader("generate") == "done"
    assert vault_with_block.left(reader.process.pid) == 0


@pytest.mark.parametrize("notices", ["next", "search", pytest.param("generate", marks=pytest.mark.slow)])
def test_a_suspended_stream_loses_its_rows_when_the_program_hears_of_the_erasure(
    reader: Program, vault_with_block: Needles, notices: str
) -> None:
    assert reader("stream") == "done"
    assert erase() == "partial 5"
    assert resume() == ["partial"]
    assert vault_with_block.left(reader.process.pid) > 500
    assert reader(notices) == ("Busy 7" if notices == "next" else "StaleReader 9")
    assert vault_with_block.left(reader.process.pid) == 0
    assert resume() == ["completed"]


def test_a_stopped_process_makes_it_partial(reader: Program, vault_with_block: Needles) -> None:
    assert reader("stream") == "done"
    os.kill(reader.process.pid, signal.SIGSTOP)
    try:
        assert erase() == "partial 5"
    finally:
        os.kill(reader.process.pid, signal.SIGCONT)
    assert reader("next") == "Busy 7"
    assert vault_with_block.left(reader.process.pid) == 0
    assert resume() == ["completed"]


def test_a_forked_child_has_no_row_and_does_not_count(reader: Program, vault_with_block: Needles) -> None:
    assert reader("stream") == "done"
    child = int(reader("fork python"))
    try:
        reader.process.wait()  # it ended without closing anything
        assert vault_with_block.left(child) == 0
        assert vault_with_block.left(child, "keys") <= ONE_KEY
        assert erase() == "completed"
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_could_not_forget_counts(reader: Program, vault_with_block: Needles) -> None:
    """A C library forks without Python: the child has the rows, and no code of ours runs in it."""
    assert reader("stream") == "done"
    child = int(reader("fork c"))
    try:
        reader.process.wait()
        assert vault_with_block.left(child) > 500
        assert erase() == "partial 5"
    finally:
        os.kill(child, signal.SIGKILL)
    assert resume() == ["completed"]


def test_two_containers_in_which_both_are_process_1(
    start: Callable[..., Program], release: Release, vault_with_block: Needles
) -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces of process ids are not permitted here")
    reader, eraser = start(*NAMESPACE), start(*NAMESPACE)
    assert (reader("pid"), eraser("pid")) == ("1", "1")
    assert reader(f"open {release.root}") == "done"
    assert reader("stream") == "done"
    assert eraser("erase") == "PartialErasure 5"
    assert eraser("resume") == "PartialErasure 5"
    assert reader("next") == "Busy 7"
    assert eraser("resume") == "completed"


def test_another_client_of_this_process_is_told(
    release: Release, vault_with_block: Needles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has to be fetched: the erasure itself makes the other client forget."""
    with Client.open("ana", release=release, write=False) as other:
        stream = other.generate(PROMPT, max_new_tokens=12, stream=True)
        next(stream)
        assert erase() == "completed"
        assert not other._vault.core.table.keys
        assert list((vault_with_block.root / "leases").iterdir()) == []


def test_random_bytes_are_found_and_others_are_not() -> None:
    """The instrument itself: it sees a copy at any address, and takes nothing else for it."""
    needle = secrets.token_bytes(1024)
    copy = np.frombuffer(b"abc" + needle, np.uint8).copy()
    other = np.random.default_rng(1).bytes(1024)
    counts = words_left(os.getpid(), {"here": needle, "there": bytes(reversed(other))})
    assert counts["here"] >= 126
    assert copy[3] == needle[0]
