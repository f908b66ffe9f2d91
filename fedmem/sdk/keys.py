"""The state of keys, recovery kits and backups of a vault, for apps and the command line.

Invariants
- A kit or backup that no longer opens the vault is listed as retired, never left out.
- The list of erasures after a backup comes from receipts whose signatures and chain verify. A restored vault erases
  the same content again before it opens.

    with Vault.open(root, subject="ana") as vault:
        print(status(vault).backend, [copy.state for copy in status(vault).copies])
"""

from collections.abc import Iterable, Sequence
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
from fedmem.vault.backup import backup, backup_registry
from fedmem.vault.backup.restoring import LaterErasures
from fedmem.vault.crypto import vault_header
from fedmem.vault.crypto.device_key import SUFFIX
from fedmem.vault.crypto.key_table import noted_numbers
from fedmem.vault.store import item_list
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.vault import Vault

__all__ = ["CopyState", "KeyStatus", "copies_of", "later_erasures", "status"]


@dataclass(frozen=True)
class CopyState:
    """The state of a recovery kit or backup.

    Attributes:
        id: Random id of the copy.
        kind: `kit` or `backup`.
        state: `valid` if it still opens the vault, else `retired`.
        created: Time in UTC, ISO 8601.
        place: Its recorded path.
        reachable: True if it is at its recorded path.
    """

    id: str
    kind: str
    state: Literal["valid", "retired"]
    created: str
    place: str
    reachable: bool


@dataclass(frozen=True)
class KeyStatus:
    """The state of a vault's keys.

    Attributes:
        backend: Kind of the keystore.
        epoch: Number of the epoch key.
        generation: Number of erasures of the vault so far.
        serial: Number of writes of the key table so far.
        noted: Newest serial in the keystore's note. After a crash it can be one less than `serial`.
        copies: Registered kits and backups, oldest first.
    """

    backend: str
    epoch: int
    generation: int
    serial: int
    noted: int
    copies: list[CopyState]


def status(vault: Vault) -> KeyStatus:
    """Return the keystore's kind, the numbers of the key table, and every kit and backup.

    Args:
        vault: The open vault.
    """
    core = vault.core
    header, table = vault_header.read_facts(core.files, core.root)[0], core.table
    return KeyStatus(
        header.keystore, table.epoch, table.generation, table.serial, noted_numbers(core.keystore)[2], copies_of(vault)
    )


def copies_of(vault: Vault, kind: str | None = None) -> list[CopyState]:
    """Return the registered kits and backups, oldest first.

    Args:
        vault: The open vault.
        kind: `kit` or `backup` to return one kind only.
    """
    return [
        _copy_state(vault, copy) for copy in backup_registry.registered_copies(vault.core) if kind in (None, copy.kind)
    ]


def later_erasures(place: Path, receipts: Path, public_keys: Sequence[bytes] = ()) -> LaterErasures:
    """Return the erasures that happened after a backup, from receipts.

    Args:
        place: Folder of the backup. It contains the receipts of earlier erasures, and the device's public key.
        receipts: Folder of the newest receipts.
        public_keys: Further public keys (PEM) of the device, if its key changed after the backup.

    Returns:
        The newest generation, and the erased ids, receipts and journal rows after the backup.

    Raises:
        NothingMatched: The folder contains no receipt.
        VerificationFailed: A signature or the chain does not verify, or a receipt is about another vault.
    """
    manifest = backup.read(place)
    newest_files = _receipt_files(receipts)
    if not newest_files:
        raise NothingMatched(
            f"There is no receipt (*.dsse.json) in {receipts}. Give the folder of the newest receipts."
        )
    backup_files = _receipt_files(place / "receipts")
    earlier_keys = [path.read_bytes() for path in sorted((place / "receipts").glob(f"*{SUFFIX}"))]
    keys = [(place / "device.pub").read_bytes(), *earlier_keys, *public_keys]
    chain = _verified_chain([*newest_files.values(), *backup_files.values()], keys)
    receipts_in_order = [(file, statement["predicate"]) for file, statement in chain]
    if any(predicate.get("vault") != manifest.vault for _, predicate in receipts_in_order):
        raise VerificationFailed("A receipt is about another vault. Give the receipts of the vault of this backup.")
    later = [(file, fields) for file, fields in receipts_in_order if fields["generation"] > manifest.generation]
    erased_ids = frozenset(str(item["id"]) for _, fields in later for item in fields.get("erased", ()))
    files = {f"{fields['erasure']}.dsse.json": file for file, fields in later}
    roots = {str(fields["erasure"]): str(fields["items"]["root"]) for _, fields in later if "items" in fields}
    files |= {path.name: Files().read(path) for path in _item_lists(receipts, roots)}
    rows = tuple(_journal_row(file, fields) for file, fields in later)
    newest_generation = max(fields["generation"] for _, fields in receipts_in_order)
    return LaterErasures(newest_generation, erased_ids, files, rows, roots)


def _copy_state(vault: Vault, copy: backup_registry.RegisteredCopy) -> CopyState:
    state: Literal["valid", "retired"] = "valid" if backup_registry.is_valid(vault.core, copy) else "retired"
    created = datetime.fromtimestamp(copy.created, UTC).isoformat(timespec="seconds")
    return CopyState(
        copy.id, copy.kind, state, created, str(copy.place), backup_registry.is_reachable(vault.core, copy)
    )


def _receipt_files(folder: Path) -> dict[str, bytes]:
    with storage_errors(f"look into {folder.name}"):
        names = sorted(folder.glob("*.dsse.json"))
    return {path.name: Files().read(path, limit=receipt.LIMIT + 1) for path in names}


def _item_lists(folder: Path, erasures: Iterable[str]) -> list[Path]:
    """Return the files of the item lists of large erasures. Raises NothingMatched if one is missing."""
    paths = [folder / f"{erasure}{item_list.SUFFIX}" for erasure in erasures]
    for path in paths:
        if not path.is_file():
            raise NothingMatched(
                f"The list {path.name} is missing beside its receipt in {folder}. It names what must not be restored: "
                "give the whole folder of receipts."
            )
    return paths


def _verified_chain(files: Sequence[bytes], keys: Sequence[bytes]) -> list[tuple[bytes, receipt.Statement]]:
    """Return the distinct receipts in the order of their chain, with their statements. Verify the whole chain."""
    distinct = {digest(file): file for file in files}
    next_of = {receipt.verify_by_any(file, keys)[0]["predicate"].get("previous"): file for file in distinct.values()}
    ordered, last_digest = [], None
    while last_digest in next_of:
        ordered.append(next_of.pop(last_digest))
        last_digest = digest(ordered[-1])
    unlinked = [file for file in distinct.values() if file not in ordered]
    return list(zip([*ordered, *unlinked], receipt.verify_chain([*ordered, *unlinked], *keys), strict=True))


def _journal_row(file: bytes, predicate: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the erasure journal for a receipt."""
    rows = predicate.get("erased", ())
    ids = frozenset(str(item["id"]) for item in rows)
    items = tuple(StoredItem("receipt", str(item["id"]), str(item["kind"])) for item in rows)
    listed = {name: predicate["items"][name] for name in ("root", "count", "kinds")} if "items" in predicate else {}
    created = datetime.fromisoformat(predicate["executed"]).timestamp()
    entry = JournalEntry(
        predicate["erasure"],
        COMPLETED,
        created,
        predicate["plan"],
        predicate["scope"]["commitment"],
        predicate["generation"] - 1,
        ids,
        items,
        predicate["residual_epsilon"],
        digest(file),
        listed=listed,
    )
    return {"id": entry.id, "state": entry.state, "created": entry.created, "journal": entry.encode()}
