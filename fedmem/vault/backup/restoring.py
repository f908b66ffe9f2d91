"""Restore a vault from a backup, without the items that were erased after the backup.

Invariants
- The restored vault appears under its name when it is complete, or not at all (I7). The backup is only read.
- The restored vault has a newer serial and another epoch than every key table before it. So other copies of the vault
  no longer open.
- Items that were erased after the backup are removed before the vault opens. If the keystore has noted more erasures
  than the given receipts show, nothing is restored. If the keystore is lost, the caller must give the newest receipts,
  or say that nothing was erased; otherwise nothing is restored.
- If the backup's ledger lacks later spends, or may lack them, a spend is added to the restored ledger: without noise,
  and on every record. So ε is infinite, and no finite budget allows a training (I6).
- If messages left the device after the backup, or if the lost keystore could have told, the restored egress ledger says
  that it is not complete.

    restore(folder, root, subject="ana", ask=None)
"""

import contextlib
import hmac
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from fedmem.errors import FedmemError, NothingMatched, Refused, VerificationFailed
from fedmem.privacy.spend import SpendEvent
from fedmem.storage.canonical import canonical_json, digest
from fedmem.storage.files import Files
from fedmem.storage.ids import new_id
from fedmem.vault.backup.backup import (
    BackupManifest,
    OpenedBackup,
    current_header,
    keystore_for,
    open_backup,
    read,
    table_without,
)
from fedmem.vault.backup.backup_registry import FOLDERS, staging_folder
from fedmem.vault.backup.recovery_kit import Kit
from fedmem.vault.crypto import rekey, vault_header
from fedmem.vault.crypto.device_key import DEVICE_KEY
from fedmem.vault.crypto.key_table import KeyTable, noted_numbers, noted_serial
from fedmem.vault.crypto.keystore import Ask, Keystore
from fedmem.vault.crypto.sealed_table import Numbers, backup_name, epoch_name, seal
from fedmem.vault.crypto.vault_header import Header
from fedmem.vault.opening import DATABASE, TABLE, check_sealed
from fedmem.vault.store import acknowledgement, item_list, ledger_anchor
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store.core import Core, batches
from fedmem.vault.store.database import BlockRow, Database, ErasureRow, RecordRow, RunRow
from fedmem.vault.store.ledger import Ledger
from fedmem.vault.vault import Vault


@dataclass(frozen=True)
class LaterErasures:
    """The erasures after a backup, from verified receipts.

    Attributes:
        generation: the vault's generation after the last of these erasures.
        erased: ids of the erased items.
        receipts: file name -> content of the receipt, or of a sealed list of items.
        journal: rows for the journal of erasures, in the order of the receipts: id, state, created, journal.
        roots: erasure -> Merkle root (hex) of its list of items, for a large erasure. The backup's key opens the list.
    """

    generation: int
    erased: frozenset[str] = frozenset()
    receipts: Mapping[str, bytes] = field(default_factory=dict)
    journal: tuple[dict[str, Any], ...] = ()
    roots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Restored:
    """The result of a restore.

    Attributes:
        vault: id of the vault.
        missing: number of writes of the key table after the backup; None if no keystore has noted it.
        unbounded: True if the ledger may lack spends, so that ε is infinite from now on.
        erased: number of items that were erased after the backup and are not restored.
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
    later_erasures: LaterErasures | None = None,
    files: Files | None = None,
) -> Restored:
    """Restore a vault from a backup. Other copies of the vault no longer open afterwards.

    Guarantees
        No item in `later_erasures.erased` is in the restored vault. If its ledger lacks later spends, or may lack
        them, ε is infinite.

    Args:
        place: the backup's folder.
        root: the folder of the restored vault; missing or empty.
        subject: the subject that the vault was created for.
        ask: returns the passphrase of the existing keystore, or with a kit the passphrase of the new one.
        kit: an opened recovery kit; the keys then go into a new set of slots of `backend`.
        backend: keyfile, passphrase or keyring; used with a kit only.
        later_erasures: the erasures after the backup; None if the backup's own receipts are the newest.

    Raises:
        Refused: `root` is not empty, the vault belongs to another subject, or `later_erasures` lacks an erasure.
        KeystoreError: the key of the backup is missing, or the keystore does not open.
        NothingMatched: there is no backup, or no parent folder of `root`.
        VerificationFailed, VersionMismatch, StorageError. The old state stays valid until `root` exists.
    """
    files, root = files or Files(), root.absolute()
    manifest = read(place, files)
    header = current_header(files, place)
    _check_root(root)
    if kit is not None and backend == "passphrase":
        ask = vault_header.passphrase(ask)
    old_keystore = keystore_for(files, header, ask, kit)
    backup = open_backup(files, place, manifest, header, old_keystore, kit)
    erasures = _with_listed_ids(
        backup, _complete_erasures(backup, old_keystore, later_erasures, is_lost=kit is not None)
    )
    noted_serial = noted_numbers(old_keystore)[2] if old_keystore is not None else 0
    staging = staging_folder(root, new_id())
    try:
        with _restored_keystore(files, backup, old_keystore, kit, backend, ask) as (new_header, keystore):
            is_unbounded = _build(files, place, staging, backup, new_header, keystore, old_keystore, erasures, subject)
            files.rename_folder(staging, root)  # the vault exists from here on
    except BaseException:
        with contextlib.suppress(FedmemError):
            files.remove_folder(staging)
        raise
    # Opening for writing completes the move of keys, writes the notes and ends open runs.
    Vault.open(root, subject=subject, ask=ask, files=files).close()
    missing_writes = noted_serial - manifest.serial if noted_serial else None
    return Restored(manifest.vault, missing_writes, is_unbounded, len(erasures.erased))


def _complete_erasures(
    backup: OpenedBackup, keystore: Keystore | None, later_erasures: LaterErasures | None, *, is_lost: bool
) -> LaterErasures:
    """Return all erasures after the backup. Raises Refused if one may be missing from `later_erasures`."""
    noted_generation, noted_serial = noted_numbers(keystore)[1:] if keystore is not None else (0, 0)
    if later_erasures is None and is_lost and not noted_serial:
        raise Refused(
            "The keystore is lost, so this machine does not know the erasures after this backup. Give the newest "
            "receipts with --receipts, or say with --nothing-erased-since that there are none."
        )
    erasures = later_erasures or LaterErasures(backup.manifest.generation)
    if noted_generation > max(erasures.generation, backup.manifest.generation):
        raise Refused(
            "Something was erased after this backup, and the given receipts do not show every erasure. Give the newest "
            "receipts of this vault with --receipts."
        )
    return erasures


def _with_listed_ids(backup: OpenedBackup, erasures: LaterErasures) -> LaterErasures:
    """Return the erasures with the ids of their sealed lists, in `erased` and in the rows of the journal."""
    key, erased, rows = backup.rows[backup.facts["ledger"]], erasures.erased, list[dict[str, Any]]()
    for row in erasures.journal:
        erasure, facts = str(row["id"]), json.loads(row["journal"])
        if erasure in erasures.roots:
            data = erasures.receipts[f"{erasure}{item_list.SUFFIX}"]
            items = item_list.open_list(key, backup.header.id, erasure, data, erasures.roots[erasure])
            facts["ids"] = sorted({item.id for item in items})
            erased |= frozenset(facts["ids"])
        rows.append({**row, "ids": facts["ids"]})
    return replace(erasures, erased=erased, journal=tuple(rows))


@contextlib.contextmanager
def _restored_keystore(
    files: Files, backup: OpenedBackup, old_keystore: Keystore | None, kit: Kit | None, backend: str, ask: Ask | None
) -> Iterator[tuple[Header, Keystore]]:
    """Yield header and keystore of the restored vault: the existing keystore, or with a kit a new set of slots."""
    if kit is None and old_keystore is not None:
        yield backup.header, old_keystore
        return
    header = vault_header.new_facts(backup.header.id, backend, backup.header.simulated, secrets.token_hex(8))
    keystore = vault_header.start_keystore(header, files, rekey.slots_of(header.id), ask)
    try:
        keystore.create(DEVICE_KEY)
        yield header, keystore
    except BaseException:
        with contextlib.suppress(FedmemError):
            epoch = _next_numbers(backup, old_keystore)[0]
            names = [DEVICE_KEY, backup_name(backup.manifest.generation), epoch_name(epoch)]
            vault_header.bare_keystore(header, files, rekey.slots_of(header.id)).discard(names)
        raise


def _build(
    files: Files,
    place: Path,
    staging: Path,
    backup: OpenedBackup,
    header: Header,
    keystore: Keystore,
    old_keystore: Keystore | None,
    erasures: LaterErasures,
    subject: str,
) -> bool:
    """Write all files of the restored vault into `staging`. Return True if its ledger may lack spends."""
    rows, facts = table_without(backup.rows, backup.facts, erasures.erased)
    table = KeyTable(files, staging / TABLE, keystore, header.id)
    table.facts, table.keys = facts, rows
    check_sealed(table, files.read(place / vault_header.NAME), subject)
    _copy(files, place, staging, backup.manifest, erasures)
    files.replace(staging / vault_header.NAME, header.encode())
    is_unbounded = _update_database(files, staging, table, backup, erasures, old_keystore)
    facts["facts"] = digest(header.encode())
    if is_unbounded and old_keystore is not None:
        facts[ledger_anchor.GAP] = list(ledger_anchor.read_note(old_keystore) or ())
    _mark_egress_gap(files, staging, facts, old_keystore)
    if erasures.generation > backup.manifest.generation:
        facts.pop("kits", None)
    else:
        facts["backup"] = backup.key.hex()
        keystore.put(backup_name(backup.manifest.generation), backup.key)
    if header != backup.header:  # the next writer destroys the remains of the lost keystore
        facts[rekey.MOVING] = rekey.move_facts(files, staging, backup.header, header, lost=True)
    epoch, generation, serial = _next_numbers(backup, old_keystore)
    numbers = (epoch, max(generation, erasures.generation), serial)
    files.replace(staging / TABLE, seal(keystore.create(epoch_name(epoch)), header.id, numbers, facts, rows))
    return is_unbounded


def _next_numbers(backup: OpenedBackup, old_keystore: Keystore | None) -> Numbers:
    """Return an epoch and a serial newer than those of backup and keystore, and the greater generation of the two."""
    if old_keystore is None:
        epoch, generation, serial = backup.numbers
    else:
        epoch, generation, serial = map(max, backup.numbers, noted_numbers(old_keystore))
        serial = max(serial, noted_serial(old_keystore))
    return epoch + 1, generation, serial + 1


def _copy(files: Files, place: Path, staging: Path, manifest: BackupManifest, erasures: LaterErasures) -> None:
    for folder in (staging, *(staging / name for name in FOLDERS)):
        files.make_folder(folder)
    for name, expected in manifest.files.items():
        if Path(name).stem not in erasures.erased and not hmac.compare_digest(
            files.copy(place / name, staging / name), expected
        ):
            raise VerificationFailed("A file of this backup changed while it was read. Use another backup.")
    for name, data in erasures.receipts.items():
        files.replace(staging / "receipts" / name, data)
    for name in FOLDERS:
        files.sync_folder(staging / name)


def _update_database(
    files: Files,
    staging: Path,
    table: KeyTable,
    backup: OpenedBackup,
    erasures: LaterErasures,
    old_keystore: Keystore | None,
) -> bool:
    """Repeat the later erasures in the copied database. Return True if its ledger may lack spends; it then says so."""
    database = Database(staging / DATABASE, write=True)
    header = backup.header
    core = Core(staging, header.id, header.simulated, files, table.keystore, table, database, write=True)
    ledger = Ledger(core)
    try:
        database.migrate()
        is_unbounded = _lacks_spends(core, old_keystore)
        with database.session() as session:
            for row_type in (RecordRow, BlockRow, RunRow):
                for batch in batches(erasures.erased):
                    session.execute(delete(row_type).where(row_type.id.in_(batch)))
            for row in erasures.journal:
                event = ledger.append_in(session, "erased", {"erasure": row["id"], "ids": row["ids"]})
                journal = canonical_json({**json.loads(row["journal"]), "completed": event.seq}).decode()
                session.merge(ErasureRow(id=row["id"], state=row["state"], created=row["created"], journal=journal))
            if is_unbounded:
                append_unbounded(ledger, session)
        note = acknowledgement.read_note(old_keystore) if old_keystore is not None else None
        if note is not None:
            database.advance_revision(note.revision)
        database.vacuum()
        database.checkpoint()
    finally:
        database.close()
    return is_unbounded


def append_unbounded(ledger: Ledger, session: Session) -> None:
    """Append a spend without noise on every record, so that ε is infinite from now on.

    Args:
        session: the database session in which the event is written.
    """
    payload = {"run": new_id(), "block": new_id(), "release": "", "records": None}
    ledger.append_in(session, "spend", {**payload, "spend": SpendEvent(1.0, 0.0, 1).to_dict()})


def _mark_egress_gap(files: Files, staging: Path, facts: dict[str, Any], old_keystore: Keystore | None) -> None:
    """Mark in the sealed facts that the egress ledger may lack lines: a later one is noted, or the keystore is lost."""
    if old_keystore is None or not noted_numbers(old_keystore)[2]:
        facts[egress.GAP] = []
        return
    noted_head, log = ledger_anchor.read_note(old_keystore, egress.NOTE), staging / egress.NAME
    if noted_head and not egress.holds(egress.read(files.read(log) if log.exists() else b""), noted_head):
        facts[egress.GAP] = list(noted_head)


def _lacks_spends(core: Core, old_keystore: Keystore | None) -> bool:
    """Return True if the ledger lacks an event that the keystore has noted, or if the keystore is lost."""
    if old_keystore is None or not noted_numbers(old_keystore)[2]:
        return True
    head = ledger_anchor.read_note(old_keystore)
    return head is not None and not ledger_anchor.has_event(core, head)


def _check_root(root: Path) -> None:
    if root.is_symlink() or root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise Refused(f"{root} is not empty, and its files are not overwritten. Restore into a new or empty folder.")
    if not root.parent.is_dir():
        raise NothingMatched(f"There is no folder {root.parent}. Make it first.")
