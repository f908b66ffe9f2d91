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
- A backup's folder gives up its own files only. Files that a person put there stay, and so does the folder then.
- An incomplete backup that a crash left is removed at the next opening for writing, and by an erasure.

    in_reach(core)          # copies that an erasure removes
    retire(core)            # removes the invalid copies that can be reached
    out_of_reach(core)      # ids for `not_covered`
"""

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sqlalchemy import delete, select

from fedmem.errors import FedmemError
from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import TEMPORARY, Files, storage_errors
from fedmem.vault.backup import recovery_kit
from fedmem.vault.crypto import container
from fedmem.vault.crypto.sealed_table import backup_name
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import CopyRow

BACKUP, KIT = "backup", "kit"
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 256 << 20
FOLDERS = ("blocks", "receipts")
_OTHER_FILES = ("table.fmk", "vault.db-wal", "vault.db-shm", "vault.db-journal")
"""The files of a backup that its manifest does not name: the key table, and what SQLite leaves beside a database."""


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
        core: an open vault, in a change.
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
    """Remove a copy that no longer exists from the register.

    Args:
        core: an open vault, in a change.
        copy_id: 32 hex digits; an unknown id is ignored.

    Raises:
        StorageError: the copy is still registered.
    """
    with core.database.session() as session:
        session.execute(delete(CopyRow).where(CopyRow.id == copy_id))


def registered_copies(core: Core) -> list[RegisteredCopy]:
    """Return all registered copies, oldest first.

    Args:
        core: an open vault.

    Raises:
        VerificationFailed: the sealed path of a copy was changed.
    """
    with core.database.session() as session:
        session.expire_on_commit = False
        rows = session.execute(select(CopyRow).order_by(CopyRow.created, CopyRow.id)).scalars().all()
    return [RegisteredCopy(row.id, row.kind, row.generation, row.created, _place(core, row)) for row in rows]


def is_valid(core: Core, copy: RegisteredCopy) -> bool:
    """Return True if a copy is valid: it still opens the present vault, or restores it.

    Args:
        core: an open vault.
        copy: a registered copy.
    """
    if copy.kind == KIT:
        return copy.id in core.table.facts.get("kits", {})
    return copy.generation == core.table.generation


def in_reach(core: Core) -> list[RegisteredCopy]:
    """Return the copies that are at their recorded paths, oldest first. An erasure retires and removes them.

    Args:
        core: an open vault.
    """
    return [copy for copy in registered_copies(core) if is_reachable(core, copy)]


def sweep(core: Core) -> None:
    """Remove the incomplete backups that a crash left, and their entries in the register.

    A folder that cannot be removed is left for the next time: a read-only stick must not close the vault.

    Args:
        core: a vault that is open for writing, in a change.
    """
    for copy in unfinished(core):
        with contextlib.suppress(FedmemError):
            core.files.remove_folder(staging_folder(copy.place, copy.id))
            forget(core, copy.id)


def unfinished(core: Core) -> list[RegisteredCopy]:
    """Return the backups that a crash left incomplete, and whose temporary folder can be reached.

    Args:
        core: an open vault.
    """
    return [
        copy for copy in registered_copies(core) if copy.kind == BACKUP and staging_folder(copy.place, copy.id).is_dir()
    ]


def staging_folder(place: Path, folder_id: str) -> Path:
    """Return the temporary folder in which `place` is built; it is renamed to `place` at the end.

    Args:
        place: the final path of the folder.
        folder_id: a random id, 32 hex digits.
    """
    return place.with_name(f".{folder_id}{TEMPORARY}")


def retire(core: Core) -> list[str]:
    """Remove the invalid copies that can be reached.

    Args:
        core: a vault that is open for writing, in a change.

    Returns:
        Ids of the invalid copies that remain, sorted.
    """
    for copy in registered_copies(core):
        if not is_valid(core, copy) and is_reachable(core, copy):
            with contextlib.suppress(FedmemError):
                _remove(core, copy)
    return out_of_reach(core)


def out_of_reach(core: Core) -> list[str]:
    """Return the ids of the invalid copies that are still registered, sorted.

    Args:
        core: an open vault.
    """
    return sorted(copy.id for copy in registered_copies(core) if not is_valid(core, copy))


def is_reachable(core: Core, copy: RegisteredCopy) -> bool:
    """Return True if the copy with this id is at its recorded path.

    Args:
        core: an open vault.
        copy: a registered copy.
    """
    if copy.kind == KIT:
        return _fields(core.files, copy.place, recovery_kit.LIMIT).get("id") == copy.id
    return _fields(core.files, copy.place / MANIFEST, MANIFEST_LIMIT).get("id") == copy.id


class CopyStore:
    """The store of recovery kits and backups, as an erasure sees it."""

    name, order = "copies", 4
    method = "key of the backups destroyed in the keystore, kits dropped from the key table, files in reach removed"
    claims = frozenset({"table:copies"})

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        """Return the copies with these ids that can be reached. A plan names them beside the items of its scope."""
        return [StoredItem(self.name, copy.id, copy.kind) for copy in in_reach(self._core) if copy.id in ids]

    def erase(self, ids: frozenset[str]) -> None:
        """Retire the copies of older generations. The key table was erased before and has the new generation."""
        if ids:
            sweep(self._core)
            retire(self._core)

    def scan(self, ids: frozenset[str]) -> list[str]:
        core, old_generation = self._core, self._core.table.generation - 1
        remaining = [copy for copy in registered_copies(core) if not is_valid(core, copy) and is_reachable(core, copy)]
        residue = [f"{copy.kind} {copy.id} is at its place" for copy in remaining]
        residue += [f"the incomplete backup {copy.id} is at its place" for copy in unfinished(core)]
        if old_generation >= 0 and core.keystore.exists(backup_name(old_generation)):
            residue.append("the key of older backups is in the keystore")
        return residue


def _remove(core: Core, copy: RegisteredCopy) -> None:
    if copy.kind == KIT:
        core.files.unlink(copy.place)
        core.files.sync_folder(copy.place.parent)
    else:
        _remove_backup(core.files, copy.place)
    forget(core, copy.id)


def _remove_backup(files: Files, place: Path) -> None:
    """Remove the files of a backup, the manifest last, and the folders that are empty then."""
    for name in _own_files(_fields(files, place / MANIFEST, MANIFEST_LIMIT)):
        if not (place / name).parent.is_symlink():
            files.unlink(place / name)
    for folder in (place / name for name in FOLDERS):
        if folder.is_dir() and not folder.is_symlink():
            files.sync_folder(folder)
            _remove_if_empty(folder)
    files.unlink(place / MANIFEST)
    files.sync_folder(place)
    _remove_if_empty(place)
    files.sync_folder(place.parent)


def _own_files(manifest: dict[str, object]) -> Iterable[str]:
    """Return the names of a backup's files. The manifest has no signature, so other paths in it are left out."""
    named = manifest.get("files")
    paths = [PurePosixPath(name) for name in named] if isinstance(named, dict) else []
    own = [path for path in paths if len(path.parts) == 1 or (len(path.parts) == 2 and path.parts[0] in FOLDERS)]
    return [*(str(path) for path in own if path.name != ".." and not path.is_absolute()), *_OTHER_FILES]


def _remove_if_empty(folder: Path) -> None:
    with storage_errors(f"remove {folder.name}"):
        if not any(folder.iterdir()):
            folder.rmdir()


def _fields(files: Files, file: Path, limit: int) -> dict[str, object]:
    """Return the JSON object in a file; empty if there is none."""
    try:
        fields = json.loads(files.read(file, limit=limit))
    except (FedmemError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _place(core: Core, row: CopyRow) -> Path:
    plain = container.open_cell(_key(core), row.sealed, identity=core.identity("copy", row.id))
    return Path(json.loads(plain))


def _key(core: Core) -> bytes:
    return core.table.keys[core.table.facts["ledger"]]
