"""The list of the items of a large erasure: one line for each item, sealed in a file beside the receipt.

Invariants
- The receipt holds the Merkle root over the lines (see `fedmem.storage.merkle`), so a list cannot be changed unnoticed.
- The file is durable before the erasure begins, and stays: a restored backup needs it to repeat the erasure.
- The list holds random ids, and digests and salts of ciphertext. It is sealed under the ledger's key, which no erasure
  destroys.

Guarantees
    One container (see `container`), bound to the vault and to the erasure.

    | input | result |
    |---|---|
    | a missing file | NothingMatched |
    | a changed file, or the file of another erasure or vault | VerificationFailed |
    | a list that opens and has another root | VerificationFailed |

    facts = item_list.write(core, erasure_id, items)
    item_list.read(core, erasure_id, facts["root"]) == tuple(items)
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedmem.errors import NothingMatched, VerificationFailed
from fedmem.storage import merkle
from fedmem.storage.canonical import canonical_json
from fedmem.vault.crypto import container
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.store.core import Core

KIND, SUFFIX = "erased-items", ".items"


def lines_of(items: Iterable[StoredItem]) -> list[bytes]:
    """Return one line for each item: canonical JSON of store, id, kind, digest and salt. It is a leaf of the tree.

    Args:
        items: the items of an erasure.
    """
    return [canonical_json(list(item)) for item in items]


def write(core: Core, erasure_id: str, items: Sequence[StoredItem]) -> dict[str, Any]:
    """Write the sealed list of an erasure, durably, and return its public facts.

    Args:
        core: an open vault, in a change.
        erasure_id: id of the erasure, 32 hex digits.
        items: the items of the erasure.

    Returns:
        root: the Merkle root, hex. count: number of items. kinds, stores: number of items by kind and by store.

    Raises:
        StorageError: no list was written.
    """
    lines = lines_of(items)
    core.files.replace(path(core.root, erasure_id), seal(key_of(core.table), core.id, erasure_id, lines))
    return _facts(items, lines)


def read(core: Core, erasure_id: str, root: str) -> tuple[StoredItem, ...]:
    """Return the items of an erasure, after the check against the Merkle root.

    Args:
        core: an open vault.
        erasure_id: id of the erasure, 32 hex digits.
        root: Merkle root of the lines, hex.

    Raises:
        NothingMatched: the list is missing. VerificationFailed: it was changed. VersionMismatch: another format.
    """
    file = path(core.root, erasure_id)
    try:
        data = core.files.read(file)
    except NothingMatched:
        raise NothingMatched(
            f"The list of erased items {file.name} is missing beside its receipt. Put it back, or restore a backup."
        ) from None
    return open_list(key_of(core.table), core.id, erasure_id, data, root)


def seal(key: bytes, vault_id: str, erasure_id: str, lines: Iterable[bytes]) -> bytes:
    """Return the content of the file of a list.

    Args:
        key: as `key_of` returns it.
        vault_id, erasure_id: random ids.
        lines: as `lines_of` returns them.
    """
    header = {"kind": KIND, "erasure": erasure_id}
    return container.seal(key, header, b"\n".join(lines), identity=_identity(vault_id, erasure_id))


def open_list(key: bytes, vault_id: str, erasure_id: str, data: bytes, root: str) -> tuple[StoredItem, ...]:
    """Return the items in the content of a list's file.

    Guarantees
        The items are those of the receipt with this root (RFC 6962 tree over SHA-256), and the file was sealed for this
        erasure.

    Args:
        key: the key of the vault's ledger, 32 bytes.
        vault_id: 32 hex digits.
        erasure_id: id of the erasure, 32 hex digits.
        data: the bytes of the file.
        root: Merkle root of the lines, hex.

    Raises:
        VerificationFailed: another key, erasure or root, or a changed file. VersionMismatch: another format.
    """
    content = bytes(container.unseal(key, data, identity=_identity(vault_id, erasure_id))[1])
    if merkle.root(content.split(b"\n")).hex() != root:  # public digests: no secret is compared
        raise VerificationFailed("The list of erased items has another Merkle root than its receipt. Restore a backup.")
    return tuple(StoredItem(*fields) for fields in json.loads(b"[" + content.replace(b"\n", b",") + b"]"))


def path(root: Path, erasure_id: str) -> Path:
    """Return the file of the list of an erasure, in the vault's folder `root`.

    Args:
        root: the vault's folder.
        erasure_id: id of the erasure, 32 hex digits.
    """
    return root / "receipts" / f"{erasure_id}{SUFFIX}"


def key_of(table: KeyTable) -> bytes:
    """Return the key that seals the lists of a vault: that of its privacy ledger, 32 bytes.

    Args:
        table: the open key table.
    """
    return table.keys[table.facts["ledger"]]


def _facts(items: Sequence[StoredItem], lines: Sequence[bytes]) -> dict[str, Any]:
    kinds = Counter(kind for _, kind in {(item.id, item.kind) for item in items})
    stores = Counter(item.store for item in items)
    root = merkle.root(lines).hex()
    return {"root": root, "count": len(items), "kinds": dict(sorted(kinds.items())), "stores": dict(stores)}


def _identity(vault_id: str, erasure_id: str) -> str:
    return f"{KIND}/{vault_id}/{erasure_id}"
