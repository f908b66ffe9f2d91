"""Recovery kits and backups: where they were put, which still hold, and how an erasure retires them.

Invariants
- A kit or backup is registered before it is written, so that no erasure misses one.
- Its place is ciphertext (I8): a path may name the subject. Id, kind, generation and time are public.
- A kit holds while the key table is sealed to it, a backup while its generation is the vault's; an erasure ends both.
- The key of the backups of a generation lies in the keystore and is destroyed with the old epoch key, so a backup out
  of reach opens with a kit of its own time only. Such kits and backups stay registered and stand in `not_covered`.

    retire(core)            # removes what is reachable of those that no longer hold
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
    """A kit or backup outside the vault.

    Attributes:
        kind: kit or backup.
        generation: the vault's when it was made.
        created: seconds since 1970.
        place: the kit's file or the backup's folder.
    """

    id: str
    kind: str
    generation: int
    created: float
    place: Path = field(repr=False)


def register(core: Core, copy_id: str, kind: str, place: Path) -> None:
    """Make a copy known before it is written."""
    sealed = core.seal("copy", copy_id, _key(core), canonical_json(str(place)))
    row = CopyRow(id=copy_id, kind=kind, generation=core.table.generation, created=time.time(), sealed=sealed)
    with core.database.session() as session:
        session.add(row)


def forget(core: Core, copy_id: str) -> None:
    """Take a copy that is no more out of the register."""
    with core.database.session() as session:
        session.execute(delete(CopyRow).where(CopyRow.id == copy_id))


def known(core: Core) -> list[RegisteredCopy]:
    """All registered copies, oldest first."""
    with core.database.session() as session:
        session.expire_on_commit = False
        rows = session.execute(select(CopyRow).order_by(CopyRow.created, CopyRow.id)).scalars().all()
    return [RegisteredCopy(row.id, row.kind, row.generation, row.created, _place(core, row)) for row in rows]


def holds(core: Core, copy: RegisteredCopy) -> bool:
    """Whether a copy still opens something of the present vault."""
    if copy.kind == KIT:
        return copy.id in core.table.facts.get("kits", {})
    return copy.generation == core.table.generation


def retire(core: Core) -> list[str]:
    """Remove what can be reached of the copies that no longer hold; the ids of those that cannot."""
    for copy in known(core):
        if not holds(core, copy) and reachable(core, copy):
            with contextlib.suppress(FedmemError):
                _remove(core, copy)
    return out_of_reach(core)


def out_of_reach(core: Core) -> list[str]:
    """Ids of the copies that no longer hold and could not be removed."""
    return sorted(copy.id for copy in known(core) if not holds(core, copy))


def reachable(core: Core, copy: RegisteredCopy) -> bool:
    """Whether the copy, and not something else, lies at its place."""
    file = copy.place if copy.kind == KIT else copy.place / MANIFEST
    try:
        found = json.loads(core.files.read(file, limit=kits.LIMIT if copy.kind == KIT else None))
        return isinstance(found, dict) and found.get("id") == copy.id
    except (FedmemError, ValueError, RecursionError):
        return False


class CopyStore:
    """Recovery kits and backups that were made before an erasure."""

    name, order = "copies", 4
    method = "key of the backups destroyed in the keystore, kits dropped from the key table, files in reach removed"
    claims = frozenset({"table:copies"})

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return []  # a copy holds whatever the vault held when it was made; which of `ids` only its key would tell

    def erase(self, ids: frozenset[str]) -> None:
        """Retire those of older generations; the key table came first and counted the new one."""
        if ids:
            retire(self._core)

    def scan(self, ids: frozenset[str]) -> list[str]:
        core, old = self._core, self._core.table.generation - 1
        left = [copy for copy in known(core) if not holds(core, copy) and reachable(core, copy)]
        found = [f"{copy.kind} {copy.id} is at its place" for copy in left]
        if old >= 0 and core.keystore.exists(backup_name(old)):
            found.append("the key of older backups is in the keystore")
        return found


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
