"""The egress ledger: every message that left this device, in the order in which it left.

Invariants
- Append only. A line is durable before `enter` returns, and is entered before its message may leave. A crash in
  between reports a message too many, never one too few.
- Lines are chained (`storage.hash_chained_log`): none can be changed, moved or dropped. The keystore notes the head
  after each line, so that a lost end is noticed. A line that a crash cut short was never acknowledged. A copy that
  includes the keystore is not noticed when it is put back.
- A device's account over all federations is computed from it (`fedmem.device.account`).
- Entering needs no writer lock of the vault: a message that waited for a private training would reveal it (I1).
- An erasure changes nothing in it, because every field is public:

    | field | why it is public |
    |---|---|
    | when | the coordinator saw when the message came |
    | message, number, nbytes, run, plan | the wire schema and the coordinator's request name them, for every device |
    | digest | of bytes that the coordinator holds |
    | spend, delta | follow from the plan, equal for every device |
    | rounds | follows from the plan, the policy's limits and the lines before |

The lines are sealed all the same: a thief of the disk must not learn in which federations the device takes part.

    log = EgressLog(vault.core)
    log.enter(EgressEntry("train.anchor", 3, 4096, fields.digest()))     # then send
    log.settle()
    log.entries()[-1].entry.nbytes
"""

import contextlib
import hmac
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from fedmem.errors import Busy, FedmemError, VerificationFailed
from fedmem.storage.canonical import canonical_json
from fedmem.storage.hash_chained_log import HEX, HashChainedLog, LogEntry, parse
from fedmem.storage.locks import WriterLock
from fedmem.vault.crypto import container
from fedmem.vault.store import ledger_anchor
from fedmem.vault.store.core import Core
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.store.turns import serialised_methods

NAME, NOTE, GAP = "egress.log", "egress", "egress_gap"
PATIENCE = 10.0  # seconds that a message waits until another one is entered


@dataclass(frozen=True)
class EgressLine:
    """A line of the egress ledger.

    Attributes:
        seq: 0, 1, 2, …
        when: seconds since 1970.
        entry: the public facts of the message.
        chain: digest over all lines up to this one, hex.
    """

    seq: int
    when: float
    entry: EgressEntry
    chain: str


@serialised_methods
class EgressLog:
    """The egress ledger of an open vault; a reader of the vault may add lines too."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._path = core.root / NAME
        self._log = HashChainedLog(core.files, self._path, HEX)

    def enter(self, entry: EgressEntry) -> EgressLine:
        """Add one line, durably.

        Args:
            entry: the public facts of the message.

        Returns:
            The new line, with the current time.

        Raises:
            StorageError, Busy, VerificationFailed: nothing was entered, and the message must not leave.
            StaleReader: the vault was erased from since it was opened; the message must not leave.
        """
        return self.enter_at(time.time(), entry)

    def enter_at(self, when: float, entry: EgressEntry) -> EgressLine:
        """Add one line with a given time, for the lines of another vault.

        Args:
            when: seconds since 1970.
            entry: the public facts of the message.

        Raises:
            StorageError, Busy, VerificationFailed, StaleReader: as `enter`.
        """
        self.core.prepare_read()
        with self._alone():
            if not self._log.count or not self._log.is_current:
                self._checked()
            seq = self._log.count
            plain = canonical_json({"when": when, **asdict(entry)})
            line = self._log.append(self.core.seal("egress", str(seq), self._key(), plain))
        return EgressLine(seq, when, entry, line.digest)

    def settle(self) -> None:
        """Note the head in the keystore. A failure is ignored: the head is then noted after the next line."""
        if not self._log.count:
            return
        head = self._log.count - 1, self._log.head
        with contextlib.suppress(FedmemError):
            noted_head = ledger_anchor.read_note(self.core.keystore, NOTE)
            if noted_head is None or noted_head[0] < head[0] or [*noted_head] == self.core.table.facts.get(GAP):
                self.core.keystore.note(NOTE, ledger_anchor.pack(head))

    def entries(self) -> list[EgressLine]:
        """Return all lines, oldest first.

        Raises:
            VerificationFailed: a line was changed, or the end is lost.
            StaleReader: the vault was erased from since it was opened.
        """
        self.core.prepare_read()
        return [self._opened(line) for line in self._checked()]

    def complete(self) -> bool:
        """Return False if a line is missing or may be: a restored backup lacks the lines after it."""
        noted_head = ledger_anchor.read_note(self.core.keystore, NOTE)
        return GAP not in self.core.table.facts and (noted_head is None or holds(self._checked(), noted_head))

    def _checked(self) -> list[LogEntry]:
        """Return the complete lines, after a check of chain and head. Raises VerificationFailed."""
        # The head first: a line that another process enters in between then comes after it.
        noted_head = ledger_anchor.read_note(self.core.keystore, NOTE)
        lines = self._log.read()
        if noted_head is not None and not holds(lines, noted_head) and [*noted_head] != self.core.table.facts.get(GAP):
            raise VerificationFailed("The egress ledger has lost its end. Put its newest file back.")
        return lines

    def _opened(self, line: LogEntry) -> EgressLine:
        identity = self.core.identity("egress", str(line.number))
        fields = json.loads(container.open_cell(self._key(), line.content, identity=identity))
        return EgressLine(line.number, fields.pop("when"), EgressEntry(**fields), line.digest)

    def _key(self) -> bytes:
        return self.core.table.keys[self.core.table.facts["ledger"]]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the ledger's own lock, so that processes enter one line at a time. Raises Busy."""
        lock, deadline = None, time.monotonic() + PATIENCE
        while lock is None:
            try:
                lock = WriterLock(self._path, "egress ledger")
            except Busy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        try:
            yield
        finally:
            lock.release()


def read(data: bytes) -> list[LogEntry]:
    """Return the complete lines of a log, still sealed.

    Args:
        data: the bytes of the file.

    Raises:
        VerificationFailed: the chain of digests breaks.
    """
    return parse(data, HEX, NAME)[0]


def holds(lines: Sequence[LogEntry], head: ledger_anchor.Head) -> bool:
    """Return True if a log has the line of this head, at its place and with its digest.

    Args:
        lines: the lines, as `read` returns them.
        head: number and digest of a line.
    """
    return head[0] < len(lines) and hmac.compare_digest(lines[head[0]].digest, head[1])
