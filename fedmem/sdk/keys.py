"""Keys, recovery kits and backups of a vault, as an app or the command line sees them.

Invariants
- A kit or backup that no longer opens the vault is shown as retired, never left out.
- What was erased after a backup comes from receipts whose signatures and chain hold, and is erased again from the
  restored vault before it opens.

    with opened(...) as vault:
        print(status(vault).backend, [copy.state for copy in status(vault).copies])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fedmem.erasure import receipt
from fedmem.erasure.journal import JournalEntry
from fedmem.erasure.states import COMPLETED
from fedmem.errors import NothingMatched, VerificationFailed
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files, storage_errors
from fedmem.vault.backup import backup
from fedmem.vault.backup import backup_registry as copies
from fedmem.vault.backup.restoring import LaterErasures
from fedmem.vault.crypto import header as public
from fedmem.vault.crypto.key_table import noted
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.vault import Vault


@dataclass(frozen=True)
class CopyState:
    """A recovery kit or backup; `reachable` says whether it lies where it was put."""

    id: str
    kind: str
    state: Literal["valid", "retired"]
    created: str
    place: str
    reachable: bool


@dataclass(frozen=True)
class KeyStatus:
    """The keys of a vault. `noted` is the newest serial that the keystore knows; one behind is normal after a crash."""

    backend: str
    epoch: int
    generation: int
    serial: int
    noted: int
    copies: list[CopyState]


def status(vault: Vault) -> KeyStatus:
    """Backend, numbers of the key table, and every kit and backup."""
    core = vault.core
    known, table = public.read_facts(core.files, core.root)[0], core.table
    return KeyStatus(
        known.keystore, table.epoch, table.generation, table.serial, noted(core.keystore)[2], copies_of(vault)
    )


def copies_of(vault: Vault, kind: str | None = None) -> list[CopyState]:
    """The registered kits and backups, or those of one kind, oldest first."""
    return [_state(vault, copy) for copy in copies.known(vault.core) if kind in (None, copy.kind)]


def newest(place: Path, receipts: Path) -> LaterErasures:
    """What the receipts in the folder `receipts`, together with those of the backup at `place`, say was erased.

    Raises NothingMatched where the folder holds no receipt, VerificationFailed where a signature or the chain breaks.
    """
    manifest = backup.read(place)
    given = _receipts(receipts)
    if not given:
        raise NothingMatched(
            f"There is no receipt (*.dsse.json) in {receipts}. Give the folder of the newest receipts."
        )
    own = _receipts(place / "receipts")
    chain = _chain([*given.values(), *own.values()], (place / "device.pub").read_bytes())
    said = [statement["predicate"] for _, statement in chain]
    if any(one.get("vault") != manifest.vault for one in said):
        raise VerificationFailed("A receipt is about another vault. Give the receipts of the vault of this backup.")
    later = [(file, one) for (file, _), one in zip(chain, said, strict=True) if one["generation"] > manifest.generation]
    erased = frozenset(str(item["id"]) for _, one in later for item in one["erased"])
    files = {f"{one['erasure']}.dsse.json": file for file, one in later}
    rows = tuple(_row(file, one) for file, one in later)
    return LaterErasures(max(one["generation"] for one in said), erased, files, rows)


def _state(vault: Vault, copy: copies.RegisteredCopy) -> CopyState:
    state: Literal["valid", "retired"] = "valid" if copies.holds(vault.core, copy) else "retired"
    created = datetime.fromtimestamp(copy.created, UTC).isoformat(timespec="seconds")
    return CopyState(copy.id, copy.kind, state, created, str(copy.place), copies.reachable(vault.core, copy))


def _receipts(folder: Path) -> dict[str, bytes]:
    with storage_errors(f"look into {folder.name}"):
        names = sorted(folder.glob("*.dsse.json"))
    return {path.name: Files().read(path, limit=receipt.LIMIT + 1) for path in names}


def _chain(files: Sequence[bytes], key: bytes) -> list[tuple[bytes, receipt.Statement]]:
    """The distinct receipts, each after the one that it names, the chain verified from the first on."""
    distinct = {digest(file): file for file in files}
    after = {receipt.verify(file, key)["predicate"].get("previous"): file for file in distinct.values()}
    ordered, last = [], None
    while last in after:
        ordered.append(after.pop(last))
        last = digest(ordered[-1])
    left = [file for file in distinct.values() if file not in ordered]
    return list(zip([*ordered, *left], receipt.verify_chain([*ordered, *left], key), strict=True))


def _row(file: bytes, said: dict[str, Any]) -> dict[str, Any]:
    """A row for the journal of erasures, made again from a receipt."""
    ids = frozenset(str(item["id"]) for item in said["erased"])
    items = tuple(StoredItem("receipt", str(item["id"]), str(item["kind"])) for item in said["erased"])
    created = datetime.fromisoformat(said["executed"]).timestamp()
    entry = JournalEntry(
        said["erasure"],
        COMPLETED,
        created,
        said["plan"],
        said["scope"]["commitment"],
        said["generation"] - 1,
        ids,
        items,
        said["residual_epsilon"],
        digest(file),
    )
    return {"id": entry.id, "state": entry.state, "created": entry.created, "journal": entry.encode()}
