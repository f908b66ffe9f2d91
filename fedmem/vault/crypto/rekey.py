"""Move a vault's keys into another keystore: for a new passphrase, another backend, or after the keystore was lost.

Invariants
- `vault.json` names the valid set of slots. Replacing this file is the point of no return. After a crash before it,
  only the old passphrase opens the vault; after a later crash, only the new one. The next writer removes the other
  set of slots in both cases (I7).
- While keys move, the table holds the old and the new header. So neither of them counts as changed by an attacker.
- At the end the old set of slots is destroyed and the epoch key changes. So an old copy of the set no longer opens the
  table.
- The device key, the key of the backups and the notes move too. So receipts still verify, and backups and kits still
  open.

Order: write both headers into the table -> put the keys into the new set -> replace vault.json -> destroy the old set
-> change the epoch key.
"""

import contextlib
import functools
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedmem import paths
from fedmem.errors import KeystoreError, Refused
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files
from fedmem.vault.backup import backup_registry
from fedmem.vault.crypto import device_key, vault_header
from fedmem.vault.crypto.device_key import DEVICE_KEY
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.crypto.keystore import NOTES, Ask, Keystore
from fedmem.vault.crypto.sealed_table import backup_name, epoch_name
from fedmem.vault.crypto.vault_header import Header
from fedmem.vault.store.core import Core

MOVING = "moving"


def move_keys(
    files: Files, root: Path, table: KeyTable, old: Header, new: Header, start: Callable[[], Keystore], *, lost: bool
) -> Keystore:
    """Move the keys of an open table into another keystore, and return that keystore.

    Guarantees
        At most one set of slots opens the vault at any time, also after a crash (see the module).

    Args:
        old: the header of the vault.
        new: the header that names the new set of slots.
        start: creates the keystore that `new` describes.
        lost: True if the old keystore may be lost; its slots are then destroyed only if it answers.

    Raises:
        StorageError, KeystoreError: the move failed. Until vault.json is replaced, the old keystore stays valid.
    """
    moving = move_facts(files, root, old, new, lost=lost)
    table.rewrite(facts={**table.facts, MOVING: moving})
    keystore = start()
    copy_keys(table, keystore)
    files.replace(root / vault_header.NAME, new.encode())
    table.use_keystore(keystore)
    finish_move(files, root, table)
    return keystore


def move_facts(files: Files, root: Path, old: Header, new: Header, *, lost: bool) -> dict[str, Any]:
    """Return the sealed fact of a move of keys that has begun: both headers, and the present device key.

    Args:
        files: the file layer.
        root: the vault's folder, with the present `device.pub`.
        old: the header before the move.
        new: the header after the move.
        lost: True if the old keystore is lost, so that its remains need not open.
    """
    device = device_key.fingerprint(files.read(root / device_key.NAME))
    return {"old": old.encode().decode(), "new": new.encode().decode(), "lost": lost, "device": device}


def renew(
    files: Files, root: Path, table: KeyTable, old: Header, backend: str, ask: Ask | None, *, lost: bool = False
) -> Keystore:
    """Move the keys into a new set of slots of `backend`, and return the new keystore.

    Guarantees
        As `move_keys`.

    Args:
        old: the header of the vault.
        backend: keyfile, passphrase or keyring.
        ask: returns the new passphrase; the passphrase keystore needs it.
        lost: True if the old keystore may be lost.

    Raises:
        UsageError: there is no such backend. KeystoreError: no passphrase or an empty one, or the machine has no such
            keystore. StorageError.
    """
    new = vault_header.new_facts(old.id, backend, old.simulated, secrets.token_hex(8))
    if backend == "keyring":
        vault_header.bare_keystore(new, files, slots_of(old.id))  # raises KeystoreError if this machine has no keyring
    ask_once = vault_header.passphrase(ask) if backend == "passphrase" else None
    start = functools.partial(vault_header.start_keystore, new, files, slots_of(old.id), ask_once)
    return move_keys(files, root, table, old, new, start, lost=lost)


def change_passphrase(core: Core, ask: Ask) -> None:
    """Change the passphrase of an open vault.

    Guarantees
        As `move_keys`: from then on only the new passphrase opens the vault.

    Args:
        ask: returns the new passphrase.

    Raises:
        Refused: the vault has no passphrase. KeystoreError: the new one is empty. StorageError.
    """
    old = vault_header.read_facts(core.files, core.root)[0]
    if old.keystore != "passphrase":
        raise Refused(f"This vault opens with the {old.keystore} keystore and has no passphrase to change.")
    with core.writing():
        try:
            renew(core.files, core.root, core.table, old, "passphrase", ask)
        finally:
            core.keystore = core.table.keystore


def rotate(core: Core) -> None:
    """Replace the epoch key without an erasure, and retire the recovery kits.

    Guarantees
        The old epoch key is destroyed, and the retired kits do not open the new table. Backups still open.

    Args:
        core: a vault that is open for writing.

    Raises:
        StorageError, KeystoreError.
    """
    with core.writing():
        facts = {name: fact for name, fact in core.table.facts.items() if name != "kits"}
        core.table.rewrite(rotate=True, facts=facts)
        backup_registry.retire(core)


def copy_keys(table: KeyTable, keystore: Keystore) -> None:
    """Copy the keys and the notes of the table's keystore into another keystore. A lost device key is replaced.

    Guarantees
        After the return, the other keystore opens the table and the backups of its generation. The earlier keystore
        stays as it is.

    Args:
        table: an open key table.
        keystore: the new keystore, empty.

    Raises:
        KeystoreError, StorageError: some keys may be missing in the new keystore.
    """
    old, epoch = table.keystore, epoch_name(table.epoch)
    keystore.put(epoch, old.load(epoch))
    if old.exists(DEVICE_KEY):
        keystore.put(DEVICE_KEY, old.load(DEVICE_KEY))
    else:
        keystore.create(DEVICE_KEY)
    if "backup" in table.facts:
        keystore.put(backup_name(table.generation), bytes.fromhex(table.facts["backup"]))
    for name in NOTES:
        value = old.noted(name)
        if value is not None:
            keystore.note(name, value)


def finish_move(files: Files, root: Path, table: KeyTable) -> None:
    """Complete or undo a move of keys, so that one set of slots and one header remain. Do nothing if there is no move.

    Args:
        files: the file layer.
        root: the vault's folder.
        table: its open key table. The caller holds the writer lock.

    Raises:
        StorageError, KeystoreError.
    """
    moving = table.facts.get(MOVING)
    if moving is None:
        return
    is_replaced = files.read(root / vault_header.NAME) == moving["new"].encode()
    old, new = (vault_header.decode(moving[side].encode()) for side in ("old", "new"))
    valid, invalid = (new, old) if is_replaced else (old, new)
    with contextlib.suppress(KeystoreError) if moving["lost"] else contextlib.nullcontext():
        _discard(files, table, invalid)
    vault_header.keep_copy(files, valid)  # an older backup does not know where the keys lie now
    facts = {name: fact for name, fact in table.facts.items() if name != MOVING}
    if is_replaced:
        facts |= _changed_device(files, root, table, moving)
    table.rewrite(facts={**facts, "facts": digest(valid.encode())}, rotate=is_replaced)


def _changed_device(files: Files, root: Path, table: KeyTable, moving: Mapping[str, Any]) -> dict[str, Any]:
    """Publish the device key of the new keystore. Return the sealed fact about the earlier one; empty if it is kept."""
    if not table.keystore.exists(DEVICE_KEY):  # a recovery kit: its restore creates the key in a further move
        return {}
    pem = device_key.public_pem(table.keystore.load(DEVICE_KEY))
    earlier = moving.get("device") or device_key.fingerprint(files.read(root / device_key.NAME))
    device_key.change(files, root, pem)
    if earlier == device_key.fingerprint(pem):
        return {}
    return {device_key.EARLIER: [*device_key.earlier_keys(table.facts), earlier]}


def is_own_header(table: KeyTable, data: bytes) -> bool:
    """Return True if `data` is the content of vault.json for the vault of this table.

    Args:
        table: an open key table.
        data: the bytes of vault.json.
    """
    moving = table.facts.get(MOVING) or {}
    expected_digests = [table.facts["facts"], *(digest(moving[side].encode()) for side in ("old", "new") if moving)]
    return digest(data) in expected_digests  # digests of public facts: no secret is compared


def slots_of(vault_id: str) -> Path:
    """Return the folder of all sets of slots of a vault.

    Args:
        vault_id: 32 hex digits.
    """
    return paths.slots_dir() / vault_id


def _discard(files: Files, table: KeyTable, header: Header) -> None:
    epochs = [epoch_name(table.epoch + step) for step in (-1, 0, 1)]
    names = [DEVICE_KEY, *epochs, *(backup_name(table.generation + step) for step in (-1, 0))]
    vault_header.bare_keystore(header, files, slots_of(header.id)).discard(names)
