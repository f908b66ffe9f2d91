"""Is it gone? A rescan of every registered store and of every file under the root.

Invariants
- Each registered store is asked, whatever it is, and what it says is reported by its name.
- The salts with which the erased ciphertexts began are looked for in every file under the root, logs included.
- Verification changes nothing.
"""

from dataclasses import dataclass

from fedmem.erasure import journal, residue
from fedmem.vault.vault import Vault

FILES = "files-under-root"


@dataclass(frozen=True)
class Verification:
    """The result of a rescan.

    Attributes:
        found: store -> sentences about what is still there; empty lists are clean.
    """

    erasure: str
    found: dict[str, list[str]]

    @property
    def clean(self) -> bool:
        """Whether no store and no file holds anything of the erased items."""
        return not any(self.found.values())


def verify(vault: Vault, erasure_id: str) -> Verification:
    """Rescan for an erasure, at any time after it. Raises NothingMatched for an unknown id."""
    return rescan(vault, journal.read(vault, erasure_id))


def rescan(vault: Vault, entry: journal.Entry) -> Verification:
    """Rescan every store and every file for the items of one erasure."""
    found = {store.name: store.scan(entry.ids) for store in vault.stores}
    needles = {f"{item.kind} {item.id}": bytes.fromhex(item.salt) for item in entry.items if item.salt}
    hits = residue.scan(vault.root, needles)
    found[FILES] = [f"ciphertext of {hit.needle} is in {hit.file}" for hit in hits]
    return Verification(entry.id, found)
