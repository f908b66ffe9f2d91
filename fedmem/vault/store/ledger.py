"""The privacy ledger: append-only and hash-chained, with sealed payloads.

Invariants
- An event is durable before `append` returns, and before the result that it pays for is used (I6).
- The digest of an event covers its number, its ciphertext and the digest before it: no event can be changed,
  moved or dropped from the middle. The head in the keystore (see `ledger_anchor`) and the runs protect the end.
- Nothing here depends on the clock: an event has a number and no time. No code deletes an event.
- The ledger outlives blocks and records, so its payloads name them by random ids only: no topic, no text,
  no digest of private data.

    vault.ledger.append("spend", {"run": run.id, "spend": spend})
"""

import contextlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import LargeBinary, cast, select
from sqlalchemy.orm import Session

from fedmem.errors import FedmemError, UsageError, VerificationFailed
from fedmem.storage.canonical import canonical_json
from fedmem.storage.hash_chained_log import chain
from fedmem.storage.private_memory import PrivateBuffer
from fedmem.vault.crypto import container
from fedmem.vault.store import ledger_anchor
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import EventRow, RunRow
from fedmem.vault.store.turns import serialised_methods

SPEND, PLANNED = "spend", "wanted"


@dataclass(frozen=True)
class Event:
    """One ledger event.

    Attributes:
        seq: 0, 1, 2, …
        kind: spend, run_finished, run_failed, erased, …
        payload: JSON: random ids, public configuration and spends.
        digest: hex; covers all events up to this one.
    """

    seq: int
    kind: str
    payload: dict[str, Any]
    digest: str


@serialised_methods
class Ledger:
    """The privacy ledger of an open vault."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def append(self, kind: str, payload: Mapping[str, Any]) -> Event:
        """Append one event, durably, and return it.

        Args:
            kind: the kind of the event.
            payload: JSON without NaN or infinity; no topic, no private data.

        Raises:
            UsageError: `payload` is not such JSON.
            Refused: the vault is open for reading only.
            StorageError, Busy: nothing was appended.
        """
        with self.core.writing(), self.core.database.session() as session:
            return self.append_in(session, kind, payload)

    def append_in(self, session: Session, kind: str, payload: Mapping[str, Any]) -> Event:
        """Append one event inside a transaction of the caller; it is durable when that transaction commits.

        Args:
            session: the caller's transaction.
            kind: the kind of the event.
            payload: JSON without NaN or infinity; no topic, no private data.

        Raises:
            UsageError: `payload` is not such JSON.
        """
        last = session.execute(select(EventRow).order_by(EventRow.seq.desc()).limit(1)).scalar_one_or_none()
        seq = 0 if last is None else last.seq + 1
        try:
            plain = canonical_json({"kind": kind, "payload": dict(payload)})
        except (TypeError, ValueError):
            raise UsageError("A ledger event holds plain JSON without NaN or infinity.") from None
        sealed = self.core.seal("event", str(seq), self._key(), plain)
        digest = chain("" if last is None else last.digest, seq, sealed)
        session.add(EventRow(seq=seq, digest=digest, sealed=sealed))
        return Event(seq, kind, json.loads(plain)["payload"], digest)

    def events(self) -> list[Event]:
        """Return all events, oldest first, after three checks: the chain, the noted head, a charge for every run.

        Raises:
            VerificationFailed: the ledger is missing, was changed, or lacks the charge of a run.
            RolledBack: the keystore knows a later event.
        """
        self.core.prepare_read()
        ledger_anchor.check(self.core)
        with self.core.database.session() as session:
            # Runs before events: else a run that begins in between would seem to have no charge.
            run_ids = session.execute(select(RunRow.id).where(RunRow.state != PLANNED)).scalars().all()
        events = list(self._verified())
        if not {*run_ids} <= {event.payload.get("run") for event in events if event.kind == SPEND}:
            raise VerificationFailed(
                "The privacy ledger lacks the charge of a training run that this vault holds: its end was cut off. "
                "Restore the vault from a backup."
            )
        return events

    def verify(self) -> str:
        """Check the whole ledger, as `events` does, and return its head digest; "" if it is empty."""
        events = self.events()
        return events[-1].digest if events else ""

    def events_until_damage(self) -> list[Event]:
        """Return the events before the first one that does not verify, oldest first; for `fedmem vault repair`."""
        events = list[Event]()
        with contextlib.suppress(FedmemError):
            events.extend(self._verified())  # the events before an error are kept
        return events

    def _verified(self) -> Iterator[Event]:
        """Yield the events in order, each after its check. Raises VerificationFailed."""
        with self.core.database.session() as session:
            stored_digest, cell = cast(EventRow.digest, LargeBinary), cast(EventRow.sealed, LargeBinary)
            rows = session.execute(select(EventRow.seq, stored_digest, cell).order_by(EventRow.seq)).all()
        previous = ""
        for expected, (seq, column, content) in enumerate(rows):
            digest, sealed = ledger_anchor.digest_as_text(column), content or b""
            if seq != expected or not hmac.compare_digest(digest, chain(previous, seq, sealed)):
                raise VerificationFailed(
                    f"The privacy ledger does not verify at event {expected}. Restore the vault from a backup."
                )
            plain = json.loads(self._open(seq, sealed))
            yield Event(seq, plain["kind"], plain["payload"], digest)
            previous = digest

    def _key(self) -> bytes:
        return self.core.table.keys[self.core.table.facts["ledger"]]

    def _open(self, seq: int, sealed: bytes) -> PrivateBuffer:
        return container.open_cell(self._key(), sealed, identity=self.core.identity("event", str(seq)))
