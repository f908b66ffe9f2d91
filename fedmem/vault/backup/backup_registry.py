"""The register of a vault's recovery kits and backups: their places, which are valid, and how an erasure retires them.

Invariants
- A kit or backup is registered before it is written, so an erasure knows all of them.
- The path of a copy is stored as ciphertext, because a path may name the subject (I8). Id, kind, generation and time
  are public.
- A kit is valid while the epoch key is sealed to it. A backup is valid while its generation is the vault's generation.
  An erasure makes both invalid.
- All backups of a generation have one key, in the keystore. It is destroyed together with the old epoch key. From then
  on, a backup out of reach opens only with a kit of its own time. Such kits and backups stay registered, and receipts
  list them in `not_covered`.

    retire(core)            # removes the invalid copies that can be reached
    out_of_reach(core)      # ids for `not_covered`
"""

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import delete, select

from fedmem.errors import FedmemError
from fedmem.storage.canonical import canonical_json
from fedmem.vault.backup import recovery_kit as kits
from fedmem.vault.crypto import container
from fedmem.vault.crypto.key_table import backup_name
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import CopyRow

BACKUP, KIT = "backup", "kit"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RegisteredCopy:
    """A recovery kit or backup outside the vault.

    Attributes:
        id: 32 hex digits.
        kind: kit or backup.
        generation: the vault's generation when the copy was created.
        created: seconds since 1970.
        place: the kit's file or the backup's folder.
    """

    id: str
    kind: str
    generation: int
    created: float
    place: Path = field(repr=False)


def register(core: Core, copy_id: str, kind: str, place: Path) -> None:
    """Add a copy to the register; call this before the copy is written.

    Args:
        copy_id: 32 hex digits.
        kind: KIT or BACKUP.
        place: the kit's file or the backup's folder.

    Raises:
        StorageError: the database cannot be written.
    """
    sealed = core.seal("copy", copy_id, _key(core), canonical_json(str(place)))
    row = CopyRow(id=copy_id, kind=kind, generation=core.table.generation, created=time.time(), sealed=sealed)
    with core.database.session() as session:
        session.add(row)


def forget(core: Core, copy_id: str) -> None:
    """Remove a copy that no longer exists from the register."""
    with core.database.session() as session:
        session.execute(delete(CopyRow).where(CopyRow.id == copy_id))


def known(core: Core) -> list[RegisteredCopy]:
    """Return all registered copies, oldest first."""
    with core.database.session() as session:
        session.expire_on_commit = False
        rows = session.execute(select(CopyRow).order_by(CopyRow.created, CopyRow.id)).scalars().all()
    return [RegisteredCopy(row.id, row.kind, row.generation, row.created, _place(core, row)) for row in rows]


def holds(core: Core, copy: RegisteredCopy) -> bool:
    """Return True if a copy is valid: it still opens the present vault, or restores it."""
    if copy.kind == KIT:
        return copy.id in core.table.facts.get("kits", {})
    return copy.generation == core.table.generation


def retire(core: Core) -> list[str]:
    """Remove the invalid copies that can be reached; return the ids of the invalid copies that remain."""
    for copy in known(core):
        if not holds(core, copy) and reachable(core, copy):
            with contextlib.suppress(FedmemError):
                _remove(core, copy)
    return out_of_reach(core)


def out_of_reach(core: Core) -> list[str]:
    """Return the ids of the invalid copies that are still registered, sorted."""
    return sorted(copy.id for copy in known(core) if not holds(core, copy))


def reachable(core: Core, copy: RegisteredCopy) -> bool:
    """Return True if the copy with this id is at its recorded path."""
    file = copy.place if copy.kind == KIT else copy.place / MANIFEST
    try:
        fields = json.loads(core.files.read(file, limit=kits.LIMIT if copy.kind == KIT else None))
        return isinstance(fields, dict) and fields.get("id") == copy.id
    except (FedmemError, ValueError, RecursionError):
        return False


class CopyStore:
    """The store of recovery kits and backups, as an erasure sees it."""

    name, order = "copies", 4
    method = "key of the backups destroyed in the keystore, kits dropped from the key table, files in reach removed"
    claims = frozenset({"table:copies"})

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return []  # a copy may hold any content of its time; without its key it does not reveal which ids

    def erase(self, ids: frozenset[str]) -> None:
        """Retire the copies of older generations. The key table was erased before and has the new generation."""
        if ids:
            retire(self._core)

    def scan(self, ids: frozenset[str]) -> list[str]:
        core, old_generation = self._core, self._core.table.generation - 1
        remaining = [copy for copy in known(core) if not holds(core, copy) and reachable(core, copy)]
        residue = [f"{copy.kind} {copy.id} is at its place" for copy in remaining]
        if old_generation >= 0 and core.keystore.exists(backup_name(old_generation)):
            residue.append("the key of older backups is in the keystore")
        return residue


def _remove(core: Core, copy: RegisteredCopy) -> None:
    if copy.kind == KIT:
        core.files.unlink(copy.place)
        core.files.sync_folder(copy.place.parent)
    else:
        core.files.remove_folder(copy.place)
    forget(core, copy.id)


def _place(core: Core, row: CopyRow) -> Path:
    plain = container.open_cell(_key(core), row.sealed, identity=core.identity("copy", row.id))
    return Path(json.loads(plain))


def _key(core: Core) -> bytes:
    return core.table.keys[core.table.facts["ledger"]]
