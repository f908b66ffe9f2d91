"""Backups: a folder with the vault's ciphertext, a key table under a key of its own, receipts and a manifest.

Invariants
- A backup is one consistent state of the vault: it is written under the writer lock, and the database is copied in one
  transaction.
- A backup does not hold the key that opens it. All backups of a generation have one key. It lies in the keystore, and
  is sealed to the recovery kits of that time. An erasure destroys this key and retires the kits; see `backup_registry`.
- A backup holds no run keys. A training run that was open then is restored as failed, and stays charged.
- The digests of the files are sealed in the backup's key table, so files of two backups cannot be mixed unnoticed.
- The folder appears under its name when it is complete, or not at all (I7). `restoring` makes a vault from a backup.

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
from fedmem.vault.backup import backup_registry
from fedmem.vault.backup.recovery import check_place
from fedmem.vault.backup.recovery_kit import Kit
from fedmem.vault.crypto import rekey, vault_header
from fedmem.vault.crypto.device_key import DEVICE_KEY, public_pem
from fedmem.vault.crypto.key_table import noted_numbers
from fedmem.vault.crypto.keystore import Ask, Keystore
from fedmem.vault.crypto.sealed_table import Numbers, backup_name, seal, unseal
from fedmem.vault.crypto.vault_header import Header
from fedmem.vault.opening import DATABASE, TABLE
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import RunRow
from fedmem.vault.vault import Vault

SCHEMA = "fedmem.backup/1"


@dataclass(frozen=True)
class BackupManifest:
    """The public facts of a backup; reading them needs no key.

    Attributes:
        id: 32 hex digits.
        vault: id of the vault.
        generation, serial: the numbers of the vault at the time of the backup.
        created: seconds since 1970.
        files: name -> SHA-256, hex; without the key table and the manifest itself.
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
        """Return the digest of the manifest that the backup's key table holds, sealed."""
        return digest({"id": self.id, "vault": self.vault, "created": self.created, "files": self.files})


@dataclass(frozen=True)
class OpenedBackup:
    """An opened backup.

    Attributes:
        header: the vault's header, with the present place of its keys.
        key: the key of the backup's key table, 32 bytes.
        numbers, facts, rows: the content of the backup's key table.
        device: the device key, 32 bytes; None if a kit opened the backup, which does not carry it.
    """

    manifest: BackupManifest
    header: Header
    key: bytes = field(repr=False)
    numbers: Numbers
    facts: dict[str, Any] = field(repr=False)
    rows: dict[str, bytes] = field(repr=False)
    device: bytes | None = field(repr=False)


def create(vault: Vault, place: Path) -> BackupManifest:
    """Write a backup of an open vault, and return its manifest.

    Guarantees
        The backup is complete and durable when this function returns. It holds ciphertext and public facts only.

    Args:
        place: the folder of the backup; missing or empty.

    Raises:
        Refused: `place` is not empty, or lies with the vault or its keys. UsageError: its parent folder is missing.
        StorageError, KeystoreError: the backup cannot be written; no part of it is left.
    """
    core, place = vault.core, place.absolute()
    check_place(core.root, place)
    with core.writing():
        backup_registry.retire(core)
        backup_registry.sweep(core)
        rekey.finish_move(core.files, core.root, core.table)
        key, backup_id = _backup_key(core), new_id()
        backup_registry.register(core, backup_id, backup_registry.BACKUP, place)
        staging = backup_registry.staging_folder(place, backup_id)
        try:
            manifest = _write(core, staging, backup_id, key)
            core.files.rename_folder(staging, place)
        except FedmemError:
            with contextlib.suppress(FedmemError):
                core.files.remove_folder(staging)
                backup_registry.forget(core, backup_id)
            raise
    return manifest


def read(place: Path, files: Files | None = None) -> BackupManifest:
    """Return the manifest of a backup after comparing every file with it. This needs no key.

    Args:
        place: the backup's folder.
        files: the file layer; None uses the default.

    Raises:
        NothingMatched: there is no backup. VerificationFailed: a file is damaged or missing.
        VersionMismatch: another format. StorageError.
    """
    files = files or Files()
    manifest = _manifest(files.read(place / backup_registry.MANIFEST, limit=backup_registry.MANIFEST_LIMIT))
    for name, expected in {**manifest.files, TABLE: manifest.table}.items():
        try:
            is_unchanged = hmac.compare_digest(files.digest(place / name), expected)
        except NothingMatched:
            is_unchanged = False
        if not is_unchanged:
            raise VerificationFailed("A file of this backup is damaged or missing. Use another backup.")
    return manifest


def verify(
    place: Path, *, ask: Ask | None = None, kit: Kit | None = None, files: Files | None = None
) -> BackupManifest:
    """Check that a backup is complete and opens, and return its manifest.

    Guarantees
        The backup opens with the keystore or the kit, and its files belong to one backup.

    Args:
        place: the backup's folder.
        ask: returns the passphrase; the passphrase keystore needs it if no kit is given.
        kit: an opened recovery kit, which opens the backup instead of the keystore.
        files: the file layer; None uses the default.

    Raises:
        Refused: an erasure retired the backup, or the kit belongs to another vault. KeystoreError: its key is missing.
        NothingMatched, VerificationFailed, VersionMismatch, StorageError: as `read`.
    """
    files = files or Files()
    manifest = read(place, files)
    header = current_header(files, place)
    open_backup(files, place, manifest, header, keystore_for(files, header, ask, kit), kit)
    return manifest


def _backup_key(core: Core) -> bytes:
    """Return the key of this generation's backups; create it if needed. It lies in the keystore and in the table."""
    name, key_hex = backup_name(core.table.generation), core.table.facts.get("backup")
    if key_hex is None:
        key_hex = core.keystore.create(name).hex()
        core.table.rewrite(facts={**core.table.facts, "backup": key_hex})
    elif not core.keystore.exists(name):
        core.keystore.put(name, bytes.fromhex(key_hex))
    return bytes.fromhex(key_hex)


def _write(core: Core, staging: Path, backup_id: str, key: bytes) -> BackupManifest:
    files, table = core.files, core.table
    for folder in (staging, *(staging / name for name in backup_registry.FOLDERS)):
        files.make_folder(folder)
    core.database.copy_to(staging / DATABASE)
    files.sync_file(staging / DATABASE)
    digests = {DATABASE: files.digest(staging / DATABASE)}
    for name in _files_of(core.root):
        digests[name] = files.copy(core.root / name, staging / name)
    manifest = BackupManifest(backup_id, core.id, table.generation, table.serial, time.time(), digests, "")
    rows, facts = table_without(table.keys, table.facts, _run_keys(core))
    numbers = (table.epoch, table.generation, table.serial)
    sealed = seal(key, core.id, numbers, {**facts, "manifest": manifest.sealed()}, rows)
    files.replace(staging / TABLE, sealed)
    manifest = replace(manifest, table=digest(sealed))
    for name in backup_registry.FOLDERS:
        files.sync_folder(staging / name)
    files.replace(staging / backup_registry.MANIFEST, canonical_json({"schema": SCHEMA, **vars(manifest)}))
    return manifest


def _files_of(root: Path) -> list[str]:
    paths = (path.relative_to(root) for name in backup_registry.FOLDERS for path in (root / name).iterdir())
    egress_file = [egress.NAME] if (root / egress.NAME).exists() else []
    return [
        vault_header.NAME,
        "device.pub",
        *egress_file,
        *sorted(str(path) for path in paths if path.suffix != TEMPORARY),
    ]


def _run_keys(core: Core) -> frozenset[str]:
    with core.database.session() as session:
        return frozenset(session.execute(select(RunRow.key_id)).scalars())


def table_without(
    rows: Mapping[str, bytes], facts: Mapping[str, Any], removed_ids: frozenset[str]
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the rows and facts of a key table without some ids.

    The facts about one table file are removed too: the key of the backups, the manifest's digest, a move of keys.

    Args:
        rows: id (32 hex digits) -> 32-byte data key.
        facts: sealed facts of the table.
        removed_ids: ids that leave rows, topics and retention rules.

    Returns:
        New rows and new facts; the arguments stay as they are.
    """
    topics = {topic: [item for item in ids if item not in removed_ids] for topic, ids in facts["topics"].items()}
    rules = {item: rule for item, rule in facts["retention"].items() if item not in removed_ids}
    other_facts = {name: fact for name, fact in facts.items() if name not in ("backup", "manifest", rekey.MOVING)}
    index = {"topics": {topic: ids for topic, ids in topics.items() if ids}, "retention": rules}
    return {item: key for item, key in rows.items() if item not in removed_ids}, {**other_facts, **index}


def _manifest(data: bytes) -> BackupManifest:
    try:
        fields = json.loads(data)
        schema = fields.pop("schema")
        manifest = BackupManifest(**fields)
        names = [Path(name) for name in manifest.files]
        are_inside = all(len(n.parts) <= 2 and not n.is_absolute() and ".." not in n.parts for n in names)
        if not are_inside or not {vault_header.NAME, "device.pub", DATABASE} <= manifest.files.keys():
            raise ValueError
        if not isinstance(schema, str) or type(manifest.generation) is not int or type(manifest.serial) is not int:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise VerificationFailed("The manifest of this backup is damaged. Use another backup.") from None
    if schema != SCHEMA:
        raise VersionMismatch("This backup has a format that this fedmem does not read. Update fedmem.")
    return manifest


def current_header(files: Files, place: Path) -> Header:
    """Return the header in a backup, with the present place of the vault's keys: they may have moved since.

    Args:
        files: the file layer.
        place: the backup's folder.

    Raises:
        NothingMatched, VerificationFailed, VersionMismatch: a header is missing, damaged or of another format.
    """
    header = vault_header.decode(files.read(place / vault_header.NAME))
    copy = rekey.slots_of(header.id) / vault_header.NAME
    if not copy.is_file():
        return header
    newest = vault_header.decode(files.read(copy))
    return replace(header, keystore=newest.keystore, kdf=newest.kdf, slots=newest.slots)


def keystore_for(files: Files, header: Header, ask: Ask | None, kit: Kit | None) -> Keystore | None:
    """Open the vault's keystore. With a kit, return the keystore for reading notes, or None if it does not answer.

    Args:
        files: the file layer.
        header: the vault's header, as `current_header` returns it.
        ask: returns the passphrase; the passphrase keystore needs it if no kit is given.
        kit: an opened recovery kit, or None.

    Raises:
        KeystoreError: no kit is given, and the keystore does not open. StorageError.
    """
    if kit is None:
        return vault_header.open_keystore(header, files, rekey.slots_of(header.id), ask)
    try:
        return vault_header.bare_keystore(header, files, rekey.slots_of(header.id))
    except KeystoreError:
        return None


def open_backup(
    files: Files, place: Path, manifest: BackupManifest, header: Header, keystore: Keystore | None, kit: Kit | None
) -> OpenedBackup:
    """Open a backup with the kit, or with the keystore if `kit` is None.

    Guarantees
        The key table, the device's public key and the manifest belong to one backup.

    Args:
        manifest: the result of `read`, which has compared the files with it.

    Raises:
        Refused, KeystoreError, VerificationFailed, VersionMismatch, StorageError: as `verify`.
    """
    sealed = files.read(place / TABLE)
    if kit is not None:
        key, device = kit.key_of(sealed), None
    elif keystore is not None:
        key, device = _key_in_keystore(keystore, manifest), keystore.load(DEVICE_KEY)
    numbers, facts, rows = unseal(key, header.id, sealed)
    # Without the device key, the sealed digest of the manifest vouches for `device.pub`.
    is_same_device = device is None or hmac.compare_digest(files.read(place / "device.pub"), public_pem(device))
    if (
        not is_same_device
        or numbers[1:] != (manifest.generation, manifest.serial)
        or facts["manifest"] != manifest.sealed()
    ):
        raise VerificationFailed("The files of this backup do not belong together. Use another backup.")
    return OpenedBackup(manifest, header, key, numbers, facts, rows, device)


def _key_in_keystore(keystore: Keystore, manifest: BackupManifest) -> bytes:
    name = backup_name(manifest.generation)
    if noted_numbers(keystore)[1] > manifest.generation and not keystore.exists(name):
        raise Refused(
            "This backup is older than an erasure, which destroyed its key. Use a newer backup, or a recovery kit of "
            "the backup's time together with the newest receipts."
        )
    return keystore.load(name)
