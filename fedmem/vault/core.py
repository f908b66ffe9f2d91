"""What every part of an open vault shares: files, key table, database, and the rules for touching them.

Invariants
- A write starts from a settled state: what a failed write left is finished or undone first (I7).
- A reader checks the generation before each fetch; after an erasure it forgets its keys, gives up its lease and must
  open the vault again (I4).
- Items without a key do not exist, whatever the database says.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedmem.errors import Refused, UsageError, VersionMismatch
from fedmem.vault import container
from fedmem.vault.database import Database
from fedmem.vault.fs import Files
from fedmem.vault.keys import Keystore
from fedmem.vault.keytable import KeyTable
from fedmem.vault.leases import Lease


class StaleReader(VersionMismatch):
    """An erasure happened since this reader opened the vault."""


@dataclass
class Core:
    """The open parts of one vault."""

    root: Path
    id: str
    simulated: bool
    files: Files
    keystore: Keystore
    table: KeyTable
    database: Database
    write: bool
    recover: Callable[[], None] = lambda: None
    closed: bool = False
    unsettled: bool = field(default=False)
    lease: Lease | None = None

    def reading(self) -> None:
        """Renew the lease of this vault object. Raises StaleReader after an erasure by another process."""
        self._check_open()
        if self.write:
            return
        _, generation, serial = self.table.peek()
        if generation != self.table.generation:
            self.let_go()
            raise StaleReader("Something was erased from this vault since it was opened here. Open it again.")
        if serial != self.table.serial:
            self.table.load()

    def generation(self) -> int:
        """The vault's generation now. A reader that meets a newer one than its own lets go of what it holds."""
        if self.write:
            return self.table.generation
        now = self.table.peek()[1]
        if now != self.table.generation:
            self.let_go()
        return now

    def let_go(self) -> None:
        """Forget the data keys and give the lease back: this reader holds the vault no more."""
        if self.lease is not None:
            self.table.keys = {}
            self.lease.release()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Guard one change of the vault. A failed one is settled before the next one starts."""
        self._check_open()
        if not self.write:
            raise Refused("This vault is open for reading only. Open it with write=True.")
        if self.unsettled:
            self.database.bury()
            self.recover()
        self.unsettled = True
        yield
        self.unsettled = False

    def seal(self, kind: str, item: str, key: bytes, data: bytes) -> bytes:
        """A sealed cell bound to this vault, the kind and the item."""
        return container.seal_cell(key, data, identity=self.identity(kind, item))

    def open_cell(self, kind: str, item: str, sealed: bytes) -> bytes:
        """Open a cell with the item's own key."""
        return container.open_cell(self.table.keys[item], sealed, identity=self.identity(kind, item))

    def identity(self, kind: str, item: str) -> str:
        """What a ciphertext is bound to."""
        return f"{kind}/{self.id}/{item}"

    def block_file(self, block_id: str) -> Path:
        """Where the container of a block lies."""
        return self.root / "blocks" / f"{block_id}.fmb"

    def _check_open(self) -> None:
        if self.closed:
            raise UsageError("This vault object is closed. Open the vault again.")


def batches(ids: Iterable[str], size: int = 500) -> Iterator[list[str]]:
    """`ids` in sorted pieces that fit into one SQL statement."""
    ordered = sorted(ids)
    return (ordered[i : i + size] for i in range(0, len(ordered), size))
