"""Moving a vault's keys into another keystore: another passphrase, another backend, or after the old one was lost.

Invariants
- `vault.json` names the set of slots in force; replacing it is the point of no return. A crash before it leaves the old
  passphrase and only that one, a crash after it the new one; the next writer clears up either way (I7).
- The table names old and new facts while keys move, so that neither is taken for a stranger's change.
- Then the old set of slots is destroyed and the epoch key changed: an old copy of the set opens the table no more.
- Device key, key of the backups and notes move along: receipts still verify, backups and kits still open.

Order: table names both facts -> keys put into the new set -> vault.json replaced -> old set destroyed -> new epoch.
"""

import contextlib
import functools
import secrets
from collections.abc import Callable
from pathlib import Path

from fedmem import paths
from fedmem.errors import KeystoreError, Refused
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files
from fedmem.vault.backup import backup_registry as copies
from fedmem.vault.crypto import header as public
from fedmem.vault.crypto.header import Header
from fedmem.vault.crypto.key_table import KeyTable, backup_name, epoch_name
from fedmem.vault.crypto.keystore import NOTES, Ask, Keystore
from fedmem.vault.store.core import Core

DEVICE = "device"
MOVING = "moving"


def move(
    files: Files, root: Path, table: KeyTable, old: Header, new: Header, start: Callable[[], Keystore], *, lost: bool
) -> Keystore:
    """Move the keys of an open table from its keystore into the one that `start` makes and `new` describes.

    Args:
        lost: the old keystore may be gone, so that its slots are destroyed only where they answer.

    Raises StorageError, KeystoreError; before vault.json is replaced the old keystore stays in force.
    """
    moving = {"old": old.encode().decode(), "new": new.encode().decode(), "lost": lost}
    table.rewrite(facts={**table.facts, MOVING: moving})
    keystore = start()
    carry(table, keystore)
    files.replace(root / public.NAME, new.encode())
    table.move(keystore)
    finish(files, root, table)
    return keystore


def renew(
    files: Files, root: Path, table: KeyTable, old: Header, backend: str, ask: Ask | None, *, lost: bool = False
) -> Keystore:
    """Move the keys into a fresh set of slots of `backend`; `ask` gives the passphrase where it needs one."""
    new = public.new_facts(old.id, backend, old.simulated, secrets.token_hex(8))
    if backend == "keyring":
        public.bare_keystore(new, files, slots_of(old.id))  # is there one at all
    given = public.passphrase(ask) if backend == "passphrase" else None
    start = functools.partial(public.start_keystore, new, files, slots_of(old.id), given)
    return move(files, root, table, old, new, start, lost=lost)


def change_passphrase(core: Core, ask: Ask) -> None:
    """Have the vault open with another passphrase and only with that one.

    Raises Refused where it opens without one, KeystoreError for an empty one, StorageError.
    """
    old = public.read_facts(core.files, core.root)[0]
    if old.keystore != "passphrase":
        raise Refused(f"This vault opens with the {old.keystore} keystore and has no passphrase to change.")
    with core.writing():
        try:
            renew(core.files, core.root, core.table, old, "passphrase", ask)
        finally:
            core.keystore = core.table.keystore


def rotate(core: Core) -> None:
    """Make a new epoch key without an erasure, and retire the recovery kits; backups go on opening."""
    with core.writing():
        facts = {name: fact for name, fact in core.table.facts.items() if name != "kits"}
        core.table.rewrite(rotate=True, facts=facts)
        copies.retire(core)


def carry(table: KeyTable, keystore: Keystore) -> None:
    """Put the table's keys and the notes of its keystore into another one."""
    old = table.keystore
    for name in (DEVICE, epoch_name(table.epoch)):
        keystore.put(name, old.load(name))
    if "backup" in table.facts:
        keystore.put(backup_name(table.generation), bytes.fromhex(table.facts["backup"]))
    for name in NOTES:
        value = old.noted(name)
        if value is not None:
            keystore.note(name, value)


def finish(files: Files, root: Path, table: KeyTable) -> None:
    """Clear up a move, done or cut: one set of slots and one digest of the public facts stay."""
    moving = table.facts.get(MOVING)
    if moving is None:
        return
    done = files.read(root / public.NAME) == moving["new"].encode()
    old, new = (public.decode(moving[side].encode()) for side in ("old", "new"))
    stays, goes = (new, old) if done else (old, new)
    with contextlib.suppress(KeystoreError) if moving["lost"] else contextlib.nullcontext():
        _discard(files, table, goes)
    public.keep_copy(files, stays)  # a backup made before does not know it
    kept = {name: fact for name, fact in table.facts.items() if name != MOVING}
    table.rewrite(facts={**kept, "facts": digest(stays.encode())}, rotate=done)


def are_facts(table: KeyTable, data: bytes) -> bool:
    """Whether `data` is the vault.json that the table names."""
    moving = table.facts.get(MOVING) or {}
    named = [table.facts["facts"], *(digest(moving[side].encode()) for side in ("old", "new") if moving)]
    return digest(data) in named  # digests of public facts: nothing secret is compared


def slots_of(vault_id: str) -> Path:
    """Folder of all sets of slots of a vault."""
    return paths.slots_dir() / vault_id


def _discard(files: Files, table: KeyTable, gone: Header) -> None:
    epochs = [epoch_name(table.epoch + step) for step in (-1, 0, 1)]
    names = [DEVICE, *epochs, *(backup_name(table.generation + step) for step in (-1, 0))]
    public.bare_keystore(gone, files, slots_of(gone.id)).discard(names)
