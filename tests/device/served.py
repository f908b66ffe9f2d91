"""A server on a real socket, in front of a vault that is only noted; for the tests of the device."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedmem.device.account import UNLIMITED, Account
from fedmem.device.vault_process import Server
from fedmem.errors import FedmemError
from fedmem.federation import connection, fixedpoint
from fedmem.federation import socket_protocol as protocol
from fedmem.federation.connection import Connection
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.socket_port import SocketPort
from fedmem.federation.terms import Terms
from fedmem.federation.wire import Fields
from fedmem.policy.policy import FederationLimits
from fedmem.vault.store.egress_entry import EgressEntry

PLAN = DevicePlan(population=4, rounds=3, sampling_rate=0.5, noise_multiplier=1.0)
SHAPES = {"w": (2, 3), "b": (3,), "none": (0,), "one": ()}
TERMS = Terms(PLAN, SHAPES)
TEXTS = ["one", "", "zwölf Wörter 漢字 🌲", "x" * 200_000, "line\nline\0line"]
TOKEN = bytes(range(32))
HELLO = TOKEN + bytes.fromhex(TERMS.digest())


@dataclass
class Noted:
    """The vault's side without a vault."""

    egress: list[EgressEntry] = field(default_factory=list)
    refuses: FedmemError | None = None
    settled: int = 0
    openings: int = 1
    erased: bool = False
    limits: FederationLimits = UNLIMITED

    def account(self) -> Account:
        return Account(self.limits, self.egress)

    def shareable(self) -> tuple[list[str], frozenset[str]]:
        if self.refuses:
            raise self.refuses
        return TEXTS, frozenset({"an id"})

    def enter(self, entry: EgressEntry) -> None:
        if self.refuses:
            raise self.refuses
        self.egress.append(entry)

    def settle(self) -> None:
        self.settled += 1

    def renew(self) -> int:
        return self.openings

    def holds(self, ids: frozenset[str]) -> bool:
        return not self.erased


@dataclass
class Running:
    """A server that runs in a thread."""

    folder: Path
    vault: Noted
    server: Server
    thread: threading.Thread
    stop: threading.Event
    made: list[SocketPort | Connection] = field(default_factory=list)

    def port(self, terms: Terms = TERMS, token: bytes = TOKEN, patience: float = 5.0) -> SocketPort:
        port = SocketPort(self.folder, terms, token, patience)
        self.made.append(port)
        return port

    def raw(self, hello: bytes | None = HELLO) -> Connection:
        """A connection that has said HELLO with these bytes, or nothing."""
        made = connection.connect(self.folder, 3.0)
        self.made.append(made)
        if hello is not None:
            made.send(protocol.HELLO, hello)
        return made

    def end(self) -> None:
        self.stop.set()
        self.thread.join(5)
        self.server.close()
        assert not self.thread.is_alive()


@contextmanager
def serving(folder: Path, **seconds: float) -> Iterator[Running]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    vault, stop = Noted(), threading.Event()
    server = Server(connection.listen(folder, 32), TERMS, TOKEN, vault, **{"greeting": 0.6, "patience": 2.0, **seconds})
    thread = threading.Thread(target=server.serve, args=(stop.is_set,))
    thread.start()
    running = Running(folder, vault, server, thread, stop)
    try:
        yield running
    finally:
        running.end()
        for one in running.made:
            one.close()


def update(**arrays: Any) -> Fields:
    return Fields({**fixedpoint.zeros(SHAPES), **arrays})


def raw_update(number: int = 1, **arrays: Any) -> bytes:
    cells = {**fixedpoint.zeros(SHAPES), **arrays}
    parts = (np.ascontiguousarray(cells[name]).tobytes() for name in sorted(cells))
    return number.to_bytes(4, "little") + b"".join(parts)
