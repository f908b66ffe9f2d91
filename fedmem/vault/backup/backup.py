"""Backups: a folder with the vault's ciphertext, its key table under a key of its own, its receipts and a manifest.

Invariants
- A backup is one state of the vault: it is taken under the writer's lock, the database in one transaction.
- It holds no key that opens it: that lies in the keystore, one for all backups of a generation, and is sealed to the
  recovery kits of the time. An erasure destroys the first and retires the second; see `copies`.
- Run keys are never in it: a run that was open ends as failed and stays charged.
- The digests of its files are sealed in its key table, so that files of two backups are never mixed.
- It appears whole, under its name, or not at all (I7). `restoring` makes a vault of it again.

    backup.create(vault, folder)
    backup.verify(folder).id
"""

import contextlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from fedmem.errors import FedmemError, KeystoreError, NothingMatched, Refused, VerificationFailed, VersionMismatch
from fedmem.storage.canonical import canonical_json, digest
from fedmem.storage.files import TEMPORARY, Files
from fedmem.storage.ids import new_id
from fedmem.vault.backup import backup_registry as copies
from fedmem.vault.backup.recovery import check_place
from fedmem.vault.backup.recovery_kit import Kit
from fedmem.vault.crypto import header as public
from fedmem.vault.crypto import rekey
from fedmem.vault.crypto.header import Header
from fedmem.vault.crypto.key_table import Numbers, backup_name, noted, seal, unseal
from fedmem.vault.crypto.keystore import Ask, Keystore
from fedmem.vault.opening import DEVICE_KEY, public_pem
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import RunRow
from fedmem.vault.vault import Vault

SCHEMA = "fedmem.backup/1"
TABLE = "table.fmk"
DATABASE = "vault.db"
FOLDERS = ("blocks", "receipts")
MANIFEST_LIMIT = 256 << 20


@dataclass(frozen=True)
class BackupManifest:
    """What a backup says of itself, without any key.

    Attributes:
        generation, serial: the vault's when it was taken.
        created: seconds since 1970.
        files: name -> SHA-256, hex; the table and the manifest itself aside.
        table: SHA-256 of the key table, hex.
    """

    id: str
    vault: str
    generation: int
    serial: int
    created: float
    files: dict[str, str] = field(repr=False)
    table: str = field(repr=False)

    def sealed(self) -> str:
        """The digest that the backup's key table holds."""
        return digest({"id": self.id, "vault": self.vault, "created": self.created, "files": self.files})


@dataclass(frozen=True)
class OpenedBackup:
    """A backup opened.

    Attributes:
        known: the public facts under which the vault's keys lie now.
        key: of the backup's key table; numbers, facts and rows are what that holds.
        device: the device key.
    """

    manifest: BackupManifest
    known: Header
    key: bytes = field(repr=False)
    numbers: Numbers
    facts: dict[str, Any] = field(repr=False)
    rows: dict[str, bytes] = field(repr=False)
    device: bytes = field(repr=False)


def create(vault: Vault, place: Path) -> BackupManifest:
    """Write a backup of the vault to the folder `place`, which is absent or empty.

    Raises Refused (a place that is taken, or with the vault itself), UsageError, StorageError: then nothing is left.
    """
    core, place = vault.core, place.absolute()
    check_place(core.root, place)
    with core.writing():
        copies.retire(core)
        sweep(core)
        rekey.finish_move(core.files, core.root, core.table)
        key, backup = _key(core), new_id()
        copies.register(core, backup, copies.BACKUP, place)
        stage = stage_of(place, backup)
        try:
            manifest = _write(core, stage, backup, key)
            core.files.rename_folder(stage, place)
        except FedmemError:
            with contextlib.suppress(FedmemError):
                core.files.remove_folder(stage)
                copies.forget(core, backup)
            raise
    return manifest


def sweep(core: Core) -> None:
    """Remove what a crash left of backups that were never finished."""
    for copy in copies.known(core):
        stage = stage_of(copy.place, copy.id)
        if copy.kind == copies.BACKUP and stage.is_dir():
            core.files.remove_folder(stage)
            copies.forget(core, copy.id)


def read(place: Path, files: Files | None = None) -> BackupManifest:
    """The manifest, every file compared with it; needs no key.

    Raises NothingMatched: no backup there. VerificationFailed: damaged or incomplete. VersionMismatch.
    """
    files = files or Files()
    manifest = _manifest(files.read(place / copies.MANIFEST, limit=MANIFEST_LIMIT))
    for name, expected in {**manifest.files, TABLE: manifest.table}.items():
        try:
            whole = hmac.compare_digest(files.digest(place / name), expected)
        except NothingMatched:
            whole = False
        if not whole:
            raise VerificationFailed("A file of this backup is damaged or missing. Use another backup.")
    return manifest


def verify(
    place: Path, *, ask: Ask | None = None, kit: Kit | None = None, files: Files | None = None
) -> BackupManifest:
    """`read`, and whether the keystore, or a kit, opens it and its files belong together.

    Raises Refused: an erasure retired it. KeystoreError: its key is gone. Else as `read`.
    """
    files = files or Files()
    manifest = read(place, files)
    known = present_facts(files, place)
    open_backup(files, place, manifest, known, keystore_for(files, known, ask, kit), kit)
    return manifest


def _key(core: Core) -> bytes:
    """The key of the backups of this generation, in the keystore and sealed in the table; made where there is none."""
    name, held = backup_name(core.table.generation), core.table.facts.get("backup")
    if held is None:
        held = core.keystore.create(name).hex()
        core.table.rewrite(facts={**core.table.facts, "backup": held})
    elif not core.keystore.exists(name):
        core.keystore.put(name, bytes.fromhex(held))
    return bytes.fromhex(held)


def _write(core: Core, stage: Path, backup: str, key: bytes) -> BackupManifest:
    files, table = core.files, core.table
    for folder in (stage, *(stage / name for name in FOLDERS)):
        files.make_folder(folder)
    core.database.copy_to(stage / DATABASE)
    files.sync_file(stage / DATABASE)
    found = {DATABASE: files.digest(stage / DATABASE)}
    for name in _files_of(core.root):
        found[name] = files.copy(core.root / name, stage / name)
    manifest = BackupManifest(backup, core.id, table.generation, table.serial, time.time(), found, "")
    rows, facts = without(table.keys, table.facts, _run_keys(core))
    numbers = (table.epoch, table.generation, table.serial)
    sealed = seal(key, core.id, numbers, {**facts, "manifest": manifest.sealed()}, rows)
    files.replace(stage / TABLE, sealed)
    manifest = replace(manifest, table=digest(sealed))
    for name in FOLDERS:
        files.sync_folder(stage / name)
    files.replace(stage / copies.MANIFEST, canonical_json({"schema": SCHEMA, **vars(manifest)}))
    return manifest


def _files_of(root: Path) -> list[str]:
    inner = (path.relative_to(root) for name in FOLDERS for path in (root / name).iterdir())
    sent = [egress.NAME] if (root / egress.NAME).exists() else []
    return [public.NAME, "device.pub", *sent, *sorted(str(path) for path in inner if path.suffix != TEMPORARY)]


def _run_keys(core: Core) -> frozenset[str]:
    with core.database.session() as session:
        return frozenset(session.execute(select(RunRow.key_id)).scalars())


def without(
    rows: Mapping[str, bytes], facts: Mapping[str, Any], gone: frozenset[str]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Rows and facts of a table without some ids, and without what belongs to one table file only."""
    topics = {topic: [item for item in ids if item not in gone] for topic, ids in facts["topics"].items()}
    rules = {item: rule for item, rule in facts["retention"].items() if item not in gone}
    kept = {name: fact for name, fact in facts.items() if name not in ("backup", "manifest", rekey.MOVING)}
    index = {"topics": {topic: ids for topic, ids in topics.items() if ids}, "retention": rules}
    return {item: key for item, key in rows.items() if item not in gone}, {**kept, **index}


def _manifest(data: bytes) -> BackupManifest:
    try:
        known = json.loads(data)
        schema = known.pop("schema")
        found = BackupManifest(**known)
        names = [Path(name) for name in found.files]
        inside = all(len(n.parts) <= 2 and not n.is_absolute() and ".." not in n.parts for n in names)
        if not inside or not {public.NAME, "device.pub", DATABASE} <= found.files.keys():
            raise ValueError
        if not isinstance(schema, str) or type(found.generation) is not int or type(found.serial) is not int:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise VerificationFailed("The manifest of this backup is damaged. Use another backup.") from None
    if schema != SCHEMA:
        raise VersionMismatch("This backup has a format that this fedmem does not read. Update fedmem.")
    return found


def present_facts(files: Files, place: Path) -> Header:
    """The vault's public facts, as the backup has them but for where its keys lie, which may have moved since."""
    known = public.decode(files.read(place / public.NAME))
    moved = rekey.slots_of(known.id) / public.NAME
    if not moved.is_file():
        return known
    now = public.decode(files.read(moved))
    return replace(known, keystore=now.keystore, kdf=now.kdf, slots=now.slots)


def keystore_for(files: Files, known: Header, ask: Ask | None, kit: Kit | None) -> Keystore | None:
    """The vault's keystore; beside a kit what is left of it, for its notes."""
    if kit is None:
        return public.open_keystore(known, files, rekey.slots_of(known.id), ask)
    try:
        return public.bare_keystore(known, files, rekey.slots_of(known.id))
    except KeystoreError:
        return None


def open_backup(
    files: Files, place: Path, manifest: BackupManifest, known: Header, keystore: Keystore | None, kit: Kit | None
) -> OpenedBackup:
    """Open a backup whose files were compared with its manifest. Raises as `verify`."""
    sealed = files.read(place / TABLE)
    if kit is not None:
        key, device = kit.key_of(sealed), kit.device
    elif keystore is not None:
        key, device = _held_key(keystore, manifest), keystore.load(DEVICE_KEY)
    numbers, facts, rows = unseal(key, known.id, sealed)
    ours = hmac.compare_digest(files.read(place / "device.pub"), public_pem(device))
    if not ours or numbers[1:] != (manifest.generation, manifest.serial) or facts["manifest"] != manifest.sealed():
        raise VerificationFailed("The files of this backup do not belong together. Use another backup.")
    return OpenedBackup(manifest, known, key, numbers, facts, rows, device)


def _held_key(keystore: Keystore, manifest: BackupManifest) -> bytes:
    name = backup_name(manifest.generation)
    if noted(keystore)[1] > manifest.generation and not keystore.exists(name):
        raise Refused(
            "This backup is older than an erasure, which destroyed its key. Use a newer backup, or a recovery kit of "
            "the backup's time together with the newest receipts."
        )
    return keystore.load(name)


def stage_of(place: Path, name: str) -> Path:
    """Where a folder is built before it gets its name."""
    return place.with_name(f".{name}{TEMPORARY}")
