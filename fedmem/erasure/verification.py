"""Verification that erased content is gone: every registered store is asked; deep verification also reads every file.

Invariants
- Each registered store is asked twice, by `scan` and by `enumerate`. A store whose scan is clean while it still lists
  an item is not believed.
- Verification changes nothing.

Guarantees
    | | ordinary, at each erasure | deep, on demand and after a resume |
    |---|---|---|
    | data keys | not in the table on the disk; the epoch key before it destroyed | no earlier epoch key exists at all |
    | block files, rows | none by id | and no byte of them in any file: their ciphertexts' salts are searched for |
    | other processes | each reader has given up the generation before | the same |
    | a copy under another name, left in a log, a temporary or unused space | not searched for | found |
    | cost | what is in scope | every byte under the root |

    The engine adds two checks to the ordinary verification: the database's log is empty, and no page that was rewritten
    keeps a copy of a moved cell. Neither verification sees the memory of programs without a lease, or copies outside
    the root.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from fedmem.erasure import journal, residue
from fedmem.vault.crypto.sealed_table import epoch_name
from fedmem.vault.store.content_stores import ContentStore
from fedmem.vault.store.turns import serialised
from fedmem.vault.vault import Vault

FILES = "files-under-root"
EPOCHS = "earlier-epoch-keys"
DEEP = ((FILES, "every byte under the root looked through for ciphertext salts"), (EPOCHS, "keystore asked for each"))
"""(name, method) of each check that a deep verification adds; a receipt names those that were made."""


@dataclass(frozen=True)
class Verification:
    """The result of a rescan.

    Attributes:
        erasure: id of the erasure.
        remnants: store -> sentences about items that still exist; an empty list is clean. A deep verification adds
            FILES and EPOCHS to the stores.
    """

    erasure: str
    remnants: dict[str, list[str]]

    @property
    def is_clean(self) -> bool:
        """True if no store and no file holds anything of the erased items."""
        return not any(self.remnants.values())


def verify(vault: Vault, erasure_id: str, *, deep: bool = False) -> Verification:
    """Rescan for an erasure, at any time after it.

    Args:
        vault: the vault that ran it.
        erasure_id: its id.
        deep: also read every file under the root.

    Raises:
        NothingMatched: there is no erasure with this id, or the list of its items is missing.
        VerificationFailed: the list of its items was changed.
        StorageError: a file could not be read.
    """
    return rescan(vault, journal.with_items(vault, journal.read(vault, erasure_id)), deep=deep)


@serialised
def rescan(vault: Vault, entry: journal.JournalEntry, *, deep: bool = False) -> Verification:
    """Ask every store for the items of one erasure; if `deep`, read every file under the root too.

    Args:
        vault: the vault that ran the erasure.
        entry: its journal entry, with its items.
        deep: True also reads every file, and asks the keystore for each earlier epoch key.

    Raises:
        StorageError: a file could not be read.
    """
    remnants = {store.name: _scan_store(store, entry.ids) for store in vault.stores}
    if deep:
        remnants |= {
            FILES: _in_files(vault, entry),
            EPOCHS: [f"the key of epoch {n} exists" for n in earlier_epochs(vault)],
        }
    return Verification(entry.id, remnants)


def _scan_store(store: ContentStore, ids: frozenset[str]) -> list[str]:
    """Return the sentences of a store's scan; if it is clean, one sentence for each item that is still listed."""
    sentences = store.scan(ids)
    return sentences or [
        f"{item.kind} {item.id} is still listed, though the scan is clean" for item in store.enumerate(ids)
    ]


def _in_files(vault: Vault, entry: journal.JournalEntry) -> list[str]:
    # A block's container and its row share kind and id: the store tells them apart.
    needles = {f"{item.kind} {item.id} ({item.store})": bytes.fromhex(i) for item in entry.items if (i := item.salt)}
    hits = residue.scan(vault.root, needles)
    return [f"ciphertext of {hit.needle} is in {hit.file}" for hit in hits] + list(_whole_files(vault, entry))


def _whole_files(vault: Vault, entry: journal.JournalEntry) -> Iterator[str]:
    """Yield a sentence for each copy of an erased file that was too damaged to have a salt, found by its digest."""
    id_of_digest = {item.digest: item.id for item in entry.items if item.digest and not item.salt}
    for path in sorted(vault.root.rglob("*")) if id_of_digest else ():
        if path.is_symlink() or not path.is_file() or path.name.startswith("vault.db"):
            continue  # closing a second descriptor of SQLite's files would drop its locks
        if (item_id := id_of_digest.get(hashlib.sha256(vault.core.files.read(path)).hexdigest())) is not None:
            yield f"the damaged file of {item_id} is in {path.relative_to(vault.root)}"


def earlier_epochs(vault: Vault) -> list[int]:
    """Return the earlier epochs whose key still exists; each key opens an older copy of the table.

    Args:
        vault: an open vault.

    Returns:
        Numbers from 1 to the epoch before the present one; empty is clean.
    """
    return [n for n in range(1, vault.core.table.epoch) if vault.core.keystore.exists(epoch_name(n))]
