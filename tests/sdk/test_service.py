"""A web service on one client, in a process of its own: what it acknowledged is there, however it ended."""

import ast
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from fedmem.sdk.client import Client
from fedmem.training.release import Release

SERVICE = Path(__file__).resolve().parents[2] / "client" / "notes_service.py"
THREADS = 8


@dataclass
class Service:
    """A running service, where it listens, and its outputs after `end`."""

    process: subprocess.Popen[str]
    url: str
    errors: str = ""

    def connect(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.errors = self.process.communicate(timeout=60)[1]


@contextlib.contextmanager
def serving(**more: str) -> Iterator[Service]:
    """Start the service on a free port, and end it where the test did not."""
    env = {**os.environ, "NOTES_KEYSTORE": "keyfile", "NOTES_PORT": "0", "PYTHONPATH": str(SERVICE.parents[1]), **more}
    command = [sys.executable, str(SERVICE)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            started = next((line for line in process.stderr if "running on" in line), "")
            yield Service(process, re.findall(r"http://[\d.]+:\d+", started)[0])
        finally:
            process.kill()


def together(works: list[Callable[[], None]]) -> None:
    """Run at once, each in a thread of its own. Raises what one of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


@dataclass
class Requests:
    """The requests of one thread, and what the service acknowledged of them.

    Attributes:
        sent: every text that was sent.
        alive: id -> text of notes that were acknowledged and whose erasure was not asked for.
        erased: ids whose erasure was acknowledged.
    """

    name: int
    answered: Callable[[], None]
    sent: set[str] = field(default_factory=set)
    alive: dict[str, str] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)

    def run(self, service: Service) -> None:
        """Send requests of every kind until the service is gone."""
        draws = random.Random(self.name)
        kinds = [self.add, self.add, self.add, self.search, self.search, self.erase, self.budget]
        with service.connect() as http, contextlib.suppress(httpx.TransportError):
            while True:
                draws.choice(kinds)(http)
                self.answered()

    def add(self, http: httpx.Client) -> None:
        text = f"note {len(self.sent)} of person {self.name}"
        self.sent.add(text)
        self.alive[http.post("/notes", content=text).raise_for_status().json()["id"]] = text

    def search(self, http: httpx.Client) -> None:
        """Look for the newest note: it is there, and nothing that was erased is."""
        newest = next(reversed(self.alive.values()), "")
        hits = http.get("/notes", params={"q": newest}).raise_for_status().json()
        assert not newest or newest in {hit["text"] for hit in hits}
        assert not self.erased & {hit["id"] for hit in hits}

    def erase(self, http: httpx.Client) -> None:
        if not self.alive:
            return
        note, _ = self.alive.popitem()
        while (answer := http.delete(f"/notes/{note}")).status_code == 409:
            assert "Plan again" in answer.json()["error"]  # another request erased something between plan and execution
        assert answer.raise_for_status().json()["receipt"]
        self.erased.add(note)

    def budget(self, http: httpx.Client) -> None:
        assert http.get("/budget").raise_for_status().json() == {"epsilon": "0.0"}


def signalled_after(service: Service, wanted: int, number: signal.Signals) -> list[Requests]:
    """Send requests from eight threads, and the signal once `wanted` were answered; others are then under way."""
    count, lock, enough = 0, threading.Lock(), threading.Event()

    def answered() -> None:
        nonlocal count
        with lock:
            count += 1
        if count >= wanted:
            enough.set()

    def run(client: Requests) -> None:
        try:
            client.run(service)
        finally:
            enough.set()  # one that failed ends them all

    def end() -> None:
        enough.wait(900)
        service.end(number)

    clients = [Requests(name, answered) for name in range(THREADS)]
    together([*(lambda client=client: run(client) for client in clients), end])
    assert count >= wanted
    return clients


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("each", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_what_was_acknowledged_is_there_and_what_was_erased_is_not(each: int, number: signal.Signals) -> None:
    with serving() as service:
        clients = signalled_after(service, THREADS * each, number)
    assert service.process.returncode == -number
    assert "Traceback" not in service.errors
    with Client.open("me", keystore="keyfile", timeout=0) as client:
        notes = {hit.id: hit.text for hit in client.search("x", k=10**6)}
        client.erase.resume()
        assert {one.state for one in client.erase.status()} == {"completed"}
        client.privacy.verify()
    assert any(one.erased for one in clients)
    for one in clients:
        assert not one.erased & notes.keys()
        assert one.alive.items() <= notes.items()
    assert set(notes.values()) <= set().union(*(one.sent for one in clients))


def test_errors_are_a_sentence_and_a_status() -> None:
    with serving() as service, service.connect() as http:
        answers = [
            (400, http.post("/notes", content=" ")),
            (400, http.post("/notes", content=b"\xff")),
            (404, http.delete("/notes/none")),
            (404, http.post("/learn/none")),
            (409, http.post("/learn/health")),
            (409, http.post("/answer", content="The tablets")),
        ]
        for status, answer in answers:
            assert answer.status_code == status
            assert answer.json()["error"].endswith(".")
        service.end(signal.SIGTERM)
    assert "Traceback" not in service.errors


def test_other_processes_read_and_write_beside_it() -> None:
    with serving() as service, service.connect() as http:
        note = http.post("/notes", content="The bridge is closed.").raise_for_status().json()["id"]
        with Client.open("me", keystore="keyfile", write=False) as reader:
            assert [hit.id for hit in reader.search("Which bridge?")] == [note]
        with Client.open("me", keystore="keyfile") as writer:
            other = writer.add("The ferry is late.").id
            assert other in http.get("/notes", params={"q": "ferry"}).text
            http.delete(f"/notes/{note}").raise_for_status()
            assert [hit.id for hit in writer.search("Which bridge?")] == [other]
        service.end(signal.SIGTERM)
    assert "Traceback" not in service.errors


def test_it_learns_and_answers_beside_other_requests(release: Release) -> None:
    with serving(NOTES_RELEASE=str(release.root)) as service, service.connect() as http:

        def add(name: int) -> None:
            for number in range(10):
                note = f"My doctor prescribed tablets {name} times, note {number}."
                http.post("/notes", content=note).raise_for_status()

        together([lambda name=name: add(name) for name in range(2)])
        learned: list[int] = []

        def learn() -> None:
            learned.append(http.post("/learn/health").status_code)

        together([learn, learn, lambda: add(3)])
        assert http.post("/answer", content="The tablets").raise_for_status().json()["text"]
        service.end(signal.SIGTERM)
    assert sorted(learned) == [200, 503]
    assert "Traceback" not in service.errors
    with Client.open("me", keystore="keyfile", timeout=0) as client:
        assert len(client.search("x", k=99)) == 30
        assert len(client.blocks.list()) == len(client.privacy.budget().runs) == 1


def test_it_is_small_and_takes_no_lock() -> None:
    text = SERVICE.read_text("utf-8")
    comment = ast.get_docstring(ast.parse(text), clean=False) or ""
    assert len([line for line in text.replace(comment, "").splitlines() if line.strip()]) <= 42
    assert not re.search(r"\b(threading|asyncio|anyio|R?Lock|Semaphore)\b", text)
