"""Is it gone? The registered stores are asked; the deep verification also reads every byte under the root.

Invariants
- Each registered store is asked twice, by its scan and by its inventory: one that says it is clean and still lists an
  item is not believed.
- Verification changes nothing.

Guarantees
    | | ordinary, at each erasure | deep, on demand and after a resume |
    |---|---|---|
    | data keys | not in the table on the disk; the epoch key before it destroyed | no earlier epoch key exists at all |
    | block files, rows | none by id | and no byte of them in any file: their ciphertexts' salts are looked for |
    | other processes | each reader has let go of the generation before | the same |
    | a copy under another name, left in a log, a temporary or unused space | not looked for | found |
    | cost | what is in scope | every byte under the root |

    The engine adds to the ordinary one that the database's log was cut to nothing and that no page it rewrote keeps a
    copy of a cell that moved. Neither sees memory of programs that hold no lease, or copies outside the root.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from fedmem.erasure import journal, residue
from fedmem.vault.crypto.key_table import epoch_name
from fedmem.vault.store.content_stores import ContentStore
from fedmem.vault.store.core import serialised
from fedmem.vault.vault import Vault

FILES = "files-under-root"
EPOCHS = "earlier-epoch-keys"
DEEP = ((FILES, "every byte under the root looked through for ciphertext salts"), (EPOCHS, "keystore asked for each"))
"""What a deep verification adds to the stores, and how; a receipt names it where it was done."""


@dataclass(frozen=True)
class Verification:
    """The result of a rescan.

    Attributes:
        found: store -> sentences about what is still there; empty lists are clean. A deep one has FILES and EPOCHS
            beside the stores.
    """

    erasure: str
    found: dict[str, list[str]]

    @property
    def clean(self) -> bool:
        """Whether no store and no file holds anything of the erased items."""
        return not any(self.found.values())


def verify(vault: Vault, erasure_id: str, *, deep: bool = False) -> Verification:
    """Rescan for an erasure, at any time after it. Raises NothingMatched for an unknown id."""
    return rescan(vault, journal.read(vault, erasure_id), deep=deep)


@serialised
def rescan(vault: Vault, entry: journal.JournalEntry, *, deep: bool = False) -> Verification:
    """Ask every store for the items of one erasure; where `deep`, read every file under the root too."""
    found = {store.name: _asked(store, entry.ids) for store in vault.stores}
    if deep:
        found |= {
            FILES: _in_files(vault, entry),
            EPOCHS: [f"the key of epoch {n} exists" for n in earlier_epochs(vault)],
        }
    return Verification(entry.id, found)


def _asked(store: ContentStore, ids: frozenset[str]) -> list[str]:
    said = store.scan(ids)
    return said or [f"{item.kind} {item.id} is still listed, though the scan is clean" for item in store.enumerate(ids)]


def _in_files(vault: Vault, entry: journal.JournalEntry) -> list[str]:
    # A block's container and its row share kind and id: the store tells them apart.
    needles = {f"{item.kind} {item.id} ({item.store})": bytes.fromhex(i) for item in entry.items if (i := item.salt)}
    hits = residue.scan(vault.root, needles)
    return [f"ciphertext of {hit.needle} is in {hit.file}" for hit in hits] + list(_whole_files(vault, entry))


def _whole_files(vault: Vault, entry: journal.JournalEntry) -> Iterator[str]:
    """Copies of erased files that were too damaged to have a salt, by their digest."""
    wanted = {item.digest: item.id for item in entry.items if item.digest and not item.salt}
    for path in sorted(vault.root.rglob("*")) if wanted else ():
        if path.is_symlink() or not path.is_file() or path.name.startswith("vault.db"):
            continue  # closing a second descriptor of SQLite's files would drop its locks
        if (name := wanted.get(hashlib.sha256(vault.core.files.read(path)).hexdigest())) is not None:
            yield f"the damaged file of {name} is in {path.relative_to(vault.root)}"


def earlier_epochs(vault: Vault) -> list[int]:
    """Epochs before this one whose key exists; each opens an older copy of the table."""
    return [n for n in range(1, vault.core.table.epoch) if vault.core.keystore.exists(epoch_name(n))]
