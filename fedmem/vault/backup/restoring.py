"""Restoring a vault from a backup, without what was erased since.

Invariants
- A restored vault appears whole, under its name, or not at all (I7); the backup is only read.
- It has a newer serial and another epoch than any table before it, so that other copies of the vault open no more.
- What was erased after the backup is left out before the vault opens. Where the keystore knows of more erasures than
  the receipts given tell, or nothing is left that could know, nothing is restored.
- Where spends after the backup are, or may be, missing from its ledger, the restored ledger says so by a spend without
  noise that may have touched every record: ε is infinite, and no finite budget allows a training (I6).
- Where messages left after the backup, the restored egress ledger says that it is not complete.

    restore(folder, root, subject="ana", ask=None)
"""

import contextlib
import hmac
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from fedmem.errors import FedmemError, NothingMatched, Refused, VerificationFailed
from fedmem.privacy.spend import SpendEvent
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files
from fedmem.storage.ids import new_id
from fedmem.vault.backup.backup import (
    DATABASE,
    FOLDERS,
    TABLE,
    BackupManifest,
    OpenedBackup,
    keystore_for,
    open_backup,
    present_facts,
    read,
    stage_of,
    without,
)
from fedmem.vault.backup.recovery_kit import Kit
from fedmem.vault.crypto import header as public
from fedmem.vault.crypto import rekey
from fedmem.vault.crypto.header import Header
from fedmem.vault.crypto.key_table import KeyTable, Numbers, backup_name, epoch_name, noted, seal
from fedmem.vault.crypto.keystore import Ask, Keystore
from fedmem.vault.opening import DEVICE_KEY, check_sealed
from fedmem.vault.store import acknowledgement
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store import ledger_anchor as heads
from fedmem.vault.store.core import Core, batches
from fedmem.vault.store.database import BlockRow, Database, ErasureRow, RecordRow, RunRow
from fedmem.vault.store.ledger import Ledger
from fedmem.vault.vault import Vault


@dataclass(frozen=True)
class LaterErasures:
    """What is known of the erasures after a backup, from verified receipts.

    Attributes:
        generation: the vault's after the last of them.
        erased: ids that they erased.
        receipts: file name -> bytes.
        journal: rows for the journal of erasures in the order of their receipts: id, state, created, journal.
    """

    generation: int
    erased: frozenset[str] = frozenset()
    receipts: Mapping[str, bytes] = field(default_factory=dict)
    journal: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Restored:
    """How a restore ended.

    Attributes:
        missing: writes of the key table after the backup; None where no keystore says.
        unbounded: whether the ledger may lack spends, so that ε is infinite from now on.
        erased: items that were erased after the backup and left out.
    """

    vault: str
    missing: int | None
    unbounded: bool
    erased: int


def restore(
    place: Path,
    root: Path,
    *,
    subject: str,
    ask: Ask | None = None,
    kit: Kit | None = None,
    backend: str = "keyfile",
    newest: LaterErasures | None = None,
    files: Files | None = None,
) -> Restored:
    """Make a vault at `root`, absent or empty, from the backup at `place`. Other copies of the vault open no more.

    Args:
        ask: gives the passphrase, of the keystore that is there or of the one to be made.
        kit: an opened recovery kit; the keys then go into a new set of slots of `backend`.
        newest: what the newest receipts say; None where there is nothing newer than the backup's own.

    Raises:
        Refused: `root` is not empty, another subject's, or something was erased since and `newest` does not tell it.
        KeystoreError: the key of the backup is gone. VerificationFailed, VersionMismatch, StorageError.
        The old state is then whole.
    """
    files, root = files or Files(), root.absolute()
    manifest = read(place, files)
    known = present_facts(files, place)
    _check_root(root)
    if kit is not None and backend == "passphrase":
        ask = public.passphrase(ask)
    old = keystore_for(files, known, ask, kit)
    found = open_backup(files, place, manifest, known, old, kit)
    newest = _checked_newest(found, old, newest, lost=kit is not None)
    before = noted(old)[2] if old is not None else 0
    stage = stage_of(root, new_id())
    try:
        with _new_keystore(files, found, old, kit, backend, ask) as (now, keystore):
            unbounded = _build(files, place, stage, found, now, keystore, old, newest, subject)
            files.rename_folder(stage, root)  # from here on it is a vault
    except BaseException:
        with contextlib.suppress(FedmemError):
            files.remove_folder(stage)
        raise
    Vault.open(root, subject=subject, ask=ask, files=files).close()  # settles keys and notes, ends open runs
    missing = before - manifest.serial if before else None
    return Restored(manifest.vault, missing, unbounded, len(newest.erased))


def _checked_newest(
    found: OpenedBackup, keystore: Keystore | None, newest: LaterErasures | None, *, lost: bool
) -> LaterErasures:
    """What to erase again. Raises Refused where more was erased than is told."""
    seen = noted(keystore)[1:] if keystore is not None else (0, 0)
    if newest is None and lost and not seen[1]:
        raise Refused(
            "The keystore is lost, so nothing here says what was erased after this backup. Give the newest receipts "
            "with --receipts, or say with --nothing-erased-since that there are none."
        )
    told = newest or LaterErasures(found.manifest.generation)
    if seen[0] > max(told.generation, found.manifest.generation):
        raise Refused(
            "Something was erased after this backup, and the receipts given do not tell all of it. Give the newest "
            "receipts of this vault with --receipts."
        )
    return told


@contextlib.contextmanager
def _new_keystore(
    files: Files, found: OpenedBackup, old: Keystore | None, kit: Kit | None, backend: str, ask: Ask | None
) -> Iterator[tuple[Header, Keystore]]:
    """The keystore of the restored vault: the one that is there, or beside a kit a new set of slots."""
    if kit is None and old is not None:
        yield found.known, old
        return
    now = public.new_facts(found.known.id, backend, found.known.simulated, secrets.token_hex(8))
    keystore = public.start_keystore(now, files, rekey.slots_of(now.id), ask)
    try:
        keystore.put(DEVICE_KEY, found.device)
        yield now, keystore
    except BaseException:
        with contextlib.suppress(FedmemError):
            names = [DEVICE_KEY, backup_name(found.manifest.generation), epoch_name(_next(found, old)[0])]
            public.bare_keystore(now, files, rekey.slots_of(now.id)).discard(names)
        raise


def _build(
    files: Files,
    place: Path,
    stage: Path,
    found: OpenedBackup,
    now: Header,
    keystore: Keystore,
    old: Keystore | None,
    newest: LaterErasures,
    subject: str,
) -> bool:
    """Everything of the restored vault, in `stage`; whether its ledger may lack spends."""
    rows, facts = without(found.rows, found.facts, newest.erased)
    table = KeyTable(files, stage / TABLE, keystore, now.id)
    table.facts, table.keys = facts, rows
    check_sealed(table, files.read(place / public.NAME), subject)
    _copy(files, place, stage, found.manifest, newest)
    files.replace(stage / public.NAME, now.encode())
    unbounded = _mend(files, stage, table, found, newest, old)
    facts["facts"] = digest(now.encode())
    if unbounded and old is not None:
        facts[heads.GAP] = list(heads.noted(old) or ())
    _mark_gap(files, stage, facts, old)
    if newest.generation > found.manifest.generation:
        facts.pop("kits", None)
    else:
        facts["backup"] = found.key.hex()
        keystore.put(backup_name(found.manifest.generation), found.key)
    if now != found.known:  # the next writer destroys what is left of the lost keystore
        facts[rekey.MOVING] = {"old": found.known.encode().decode(), "new": now.encode().decode(), "lost": True}
    epoch, generation, serial = _next(found, old)
    numbers = (epoch, max(generation, newest.generation), serial)
    files.replace(stage / TABLE, seal(keystore.create(epoch_name(epoch)), now.id, numbers, facts, rows))
    return unbounded


def _next(found: OpenedBackup, old: Keystore | None) -> Numbers:
    """Epoch and serial after all that backup and keystore know of; the greater generation."""
    epoch, generation, serial = map(max, found.numbers, noted(old) if old is not None else (0, 0, 0))
    return epoch + 1, generation, serial + 1


def _copy(files: Files, place: Path, stage: Path, manifest: BackupManifest, newest: LaterErasures) -> None:
    for folder in (stage, *(stage / name for name in FOLDERS)):
        files.make_folder(folder)
    for name, expected in manifest.files.items():
        if Path(name).stem not in newest.erased and not hmac.compare_digest(
            files.copy(place / name, stage / name), expected
        ):
            raise VerificationFailed("A file of this backup changed while it was read. Use another backup.")
    for name, data in newest.receipts.items():
        files.replace(stage / "receipts" / name, data)
    for name in FOLDERS:
        files.sync_folder(stage / name)


def _mend(
    files: Files, stage: Path, table: KeyTable, found: OpenedBackup, newest: LaterErasures, old: Keystore | None
) -> bool:
    """Leave out what was erased since, and tell the ledger where it may lack spends; whether it may."""
    database = Database(stage / DATABASE, write=True)
    core = Core(stage, found.known.id, found.known.simulated, files, table.keystore, table, database, write=True)
    ledger = Ledger(core)
    try:
        database.migrate()
        unbounded = _lacks_spends(core, old)
        with database.session() as session:
            for kind in (RecordRow, BlockRow, RunRow):
                for batch in batches(newest.erased):
                    session.execute(delete(kind).where(kind.id.in_(batch)))
            for row in newest.journal:
                session.merge(ErasureRow(**row))
                ledger.append_in(session, "erased", {"erasure": row["id"], "ids": json.loads(row["journal"])["ids"]})
            if unbounded:
                append_unbounded(ledger, session)
        note = acknowledgement.noted(old) if old is not None else None
        if note is not None:
            database.advance_revision(note.revision)
        database.vacuum()
        database.checkpoint()
    finally:
        database.close()
    return unbounded


def append_unbounded(ledger: Ledger, session: Session) -> None:
    """Add a spend without noise that may have touched every record: ε is infinite from now on."""
    lost = {"run": new_id(), "block": new_id(), "release": "", "records": None}
    ledger.append_in(session, "spend", {**lost, "spend": SpendEvent(1.0, 0.0, 1).to_dict()})


def _mark_gap(files: Files, stage: Path, facts: dict[str, Any], old: Keystore | None) -> None:
    """Say in the sealed facts that messages left after the backup, where the keystore knows of one."""
    known, log = old and heads.noted(old, egress.NOTE), stage / egress.NAME
    if known and not egress.holds(egress.read(files.read(log) if log.exists() else b""), known):
        facts[egress.GAP] = list(known)


def _lacks_spends(core: Core, old: Keystore | None) -> bool:
    """Whether the ledger lacks events that the keystore knows of, or no keystore is left to know."""
    if old is None or not noted(old)[2]:
        return True
    head = heads.noted(old)
    return head is not None and not heads.holds(core, head)


def _check_root(root: Path) -> None:
    if root.is_symlink() or root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise Refused(f"{root} is not empty, and nothing is written over. Restore into a new or empty folder.")
    if not root.parent.is_dir():
        raise NothingMatched(f"There is no folder {root.parent}. Make it first.")
