"""The egress ledger: every message that left this device, in the order in which it left.

Invariants
- Append only. A line is durable before `enter` returns, and is entered before its message may leave: a crash in
  between over-reports, never under-reports.
- Lines are chained (`storage.hash_chained_log`): none can be changed, moved or dropped. The end is held by the head
  that the keystore notes after each line; a line cut short by a crash was never acknowledged.
- Entering needs no writer lock of the vault: a message that waited for a private training would tell of it (I1).
- An erasure leaves it whole, and finds nothing in it that it would have to remove:

    | field | why it is public |
    |---|---|
    | when | the coordinator saw when the message came |
    | message, number, nbytes, run, plan | the wire schema and the coordinator's request name them, for every device |
    | digest | of bytes that the coordinator holds |
    | spend, delta | follow from the plan, equal for every device |

They are sealed all the same: a thief of the disk need not learn in which federations somebody takes part.

    egress = Egress(vault.core)
    egress.enter(EgressEntry("train.anchor", 3, 4096, fields.digest()))     # then send
    egress.settle()
    egress.entries()[-1].entry.nbytes
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
from fedmem.vault.store import ledger_anchor as heads
from fedmem.vault.store.core import Core, serialised_methods
from fedmem.vault.store.egress_entry import EgressEntry

NAME, NOTE, GAP = "egress.log", "egress", "egress_gap"
PATIENCE = 10.0  # seconds that one message waits for another one to be entered


@dataclass(frozen=True)
class EgressLine:
    """A line of the ledger: `seq` from 0, `when` in seconds since 1970, `chain` covers all lines up to this one."""

    seq: int
    when: float
    entry: EgressEntry
    chain: str


@serialised_methods
class EgressLog:
    """The egress ledger of an open vault; a reader of the vault may enter too."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._path = core.root / NAME
        self._log = HashChainedLog(core.files, self._path, HEX)

    def enter(self, entry: EgressEntry) -> EgressLine:
        """Add one line, durably. Raises StorageError, Busy, VerificationFailed: then the message must not leave."""
        return self.enter_at(time.time(), entry)

    def enter_at(self, when: float, entry: EgressEntry) -> EgressLine:
        """Add one line of a given time, in seconds since 1970, as `enter` does: for lines saved from another vault."""
        self.core.reading()
        with self._alone():
            if not self._log.count or not self._log.is_current:
                self._checked()
            seq = self._log.count
            plain = canonical_json({"when": when, **asdict(entry)})
            line = self._log.append(self.core.seal("egress", str(seq), self._key(), plain))
        return EgressLine(seq, when, entry, line.digest)

    def settle(self) -> None:
        """Note the head in the keystore. One that cannot do so now does so after the next line."""
        if not self._log.count:
            return
        head = self._log.count - 1, self._log.head
        with contextlib.suppress(FedmemError):
            known = heads.noted(self.core.keystore, NOTE)
            if known is None or known[0] < head[0] or [*known] == self.core.table.facts.get(GAP):
                self.core.keystore.note(NOTE, heads.packed(head))

    def entries(self) -> list[EgressLine]:
        """All lines, oldest first. Raises VerificationFailed where one was changed or the end is lost."""
        self.core.reading()
        return [self._opened(line) for line in self._checked()]

    def complete(self) -> bool:
        """Return False if a line is known to be missing: a restored backup lacks what left after it."""
        known = heads.noted(self.core.keystore, NOTE)
        return GAP not in self.core.table.facts and (known is None or holds(self._checked(), known))

    def _checked(self) -> list[LogEntry]:
        """Return the whole lines, after the check of chain and head."""
        known = heads.noted(self.core.keystore, NOTE)  # first: what is entered meanwhile is held as well
        lines = self._log.read()
        if known is not None and not holds(lines, known) and [*known] != self.core.table.facts.get(GAP):
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
        """One line at a time, over all processes."""
        lock, limit = None, time.monotonic() + PATIENCE
        while lock is None:
            try:
                lock = WriterLock(self._path, "egress ledger")
            except Busy:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.01)
        try:
            yield
        finally:
            lock.release()


def read(data: bytes) -> list[LogEntry]:
    """Return the whole lines of a log. Raises VerificationFailed where the chain breaks."""
    return parse(data, HEX, NAME)[0]


def holds(lines: Sequence[LogEntry], known: heads.Head) -> bool:
    """Return True if the lines hold this head at its place."""
    return known[0] < len(lines) and hmac.compare_digest(lines[known[0]].digest, known[1])
