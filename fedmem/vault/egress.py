"""The egress ledger: every message that left this device, in the order in which it left.

Invariants
- Append only. A line is durable before `enter` returns, and is entered before its message may leave: a crash in
  between over-reports, never under-reports.
- Lines are chained as the events of the privacy ledger are (`ledger.chain`): none can be changed, moved or dropped. The
  end is held by the head that the keystore notes after each line; a line cut short by a crash was never acknowledged.
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

from fedmem.canonical import canonical_json
from fedmem.errors import Busy, FedmemError, VerificationFailed
from fedmem.vault import container, heads
from fedmem.vault.core import Core, serialised_methods
from fedmem.vault.leaving import EgressEntry
from fedmem.vault.ledger import chain
from fedmem.vault.lock import WriterLock

NAME, NOTE, GAP = "egress.log", "egress", "egress_gap"
PATIENCE = 10.0  # seconds that one message waits for another one to be entered
_Line = tuple[bytes, str]  # sealed, digest of the chain


@dataclass(frozen=True)
class Entered:
    """A line of the ledger: `seq` from 0, `when` in seconds since 1970, `chain` covers all lines up to this one."""

    seq: int
    when: float
    entry: EgressEntry
    chain: str


@serialised_methods
class Egress:
    """The egress ledger of an open vault; a reader of the vault may enter too."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._path = core.root / NAME
        self._known: tuple[int, int, str] | None = None  # bytes, lines and head of what was verified

    def enter(self, entry: EgressEntry) -> Entered:
        """Add one line, durably. Raises StorageError, Busy, VerificationFailed: then the message must not leave."""
        return self.enter_at(time.time(), entry)

    def enter_at(self, when: float, entry: EgressEntry) -> Entered:
        """Add one line of a given time, in seconds since 1970, as `enter` does: for lines saved from another vault."""
        self.core.reading()
        with self._alone():
            size, seq, last = self._verified_end()
            plain = canonical_json({"when": when, **asdict(entry)})
            sealed = self.core.seal("egress", str(seq), self._key(), plain)
            head = chain(last, seq, sealed)
            line = _encode((sealed, head))
            self.core.files.append(self._path, size, line)
            self._known = size + len(line), seq + 1, head
        return Entered(seq, when, entry, head)

    def settle(self) -> None:
        """Note the head in the keystore. One that cannot do so now does so after the next line."""
        if self._known is None or not self._known[1]:
            return
        head = self._known[1] - 1, self._known[2]
        with contextlib.suppress(FedmemError):
            known = heads.noted(self.core.keystore, NOTE)
            if known is None or known[0] < head[0] or [*known] == self.core.table.facts.get(GAP):
                self.core.keystore.note(NOTE, heads.packed(head))

    def entries(self) -> list[Entered]:
        """All lines, oldest first. Raises VerificationFailed where one was changed or the end is lost."""
        self.core.reading()
        return [self._opened(seq, line) for seq, line in enumerate(self._checked()[0])]

    def complete(self) -> bool:
        """Whether no line is known to be missing: a restored backup lacks what left after it."""
        known = heads.noted(self.core.keystore, NOTE)
        return GAP not in self.core.table.facts and (known is None or holds(self._checked()[0], known))

    def _verified_end(self) -> tuple[int, int, str]:
        if self._known is None or self._path.stat().st_size != self._known[0]:
            lines, size = self._checked()
            self._known = size, len(lines), lines[-1][1] if lines else ""
        return self._known

    def _checked(self) -> tuple[list[_Line], int]:
        """Whole lines and their bytes, after the check of chain and head."""
        known = heads.noted(self.core.keystore, NOTE)  # first: what is entered meanwhile is held as well
        lines, size = read(self.core.files.read(self._path) if self._path.exists() else b"")
        if known is not None and not holds(lines, known) and [*known] != self.core.table.facts.get(GAP):
            raise VerificationFailed("The egress ledger has lost its end. Put its newest file back.")
        return lines, size

    def _opened(self, seq: int, line: _Line) -> Entered:
        identity = self.core.identity("egress", str(seq))
        fields = json.loads(container.open_cell(self._key(), line[0], identity=identity))
        return Entered(seq, fields.pop("when"), EgressEntry(**fields), line[1])

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


def read(data: bytes) -> tuple[list[_Line], int]:
    """Whole lines of a log and how many bytes they take. Raises VerificationFailed where the chain breaks."""
    lines, size, previous = list[_Line](), 0, ""
    for text in data.split(b"\n")[:-1]:  # what follows the last line end was torn by a crash
        line = _decode(text + b"\n")
        if line is None or not hmac.compare_digest(line[1], chain(previous, len(lines), line[0])):
            raise VerificationFailed(
                f"The egress ledger does not verify at line {len(lines)}. Restore the vault from a backup."
            )
        lines.append(line)
        size, previous = size + len(text) + 1, line[1]
    return lines, size


def holds(lines: Sequence[_Line], known: heads.Head) -> bool:
    """Whether the lines hold this head at its place."""
    return known[0] < len(lines) and hmac.compare_digest(lines[known[0]][1], known[1])


def _encode(line: _Line) -> bytes:
    return canonical_json({"digest": line[1], "sealed": line[0].hex()}) + b"\n"


def _decode(text: bytes) -> _Line | None:
    """The line, if these bytes are just what `_encode` makes of one."""
    try:
        found = json.loads(text)
        line = bytes.fromhex(found["sealed"]), str(found["digest"])
        return line if line[1].isascii() and text == _encode(line) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
