"""Open what is left of a vault that does not fit together, for reading: to say what is wrong, and to save the rest.

Invariants
- Nothing of the vault is changed: files are read, the database is opened for reading only, no lock or lease is taken.
- Nothing is believed that does not decrypt: a header or table of another vault opens nothing.
- What does not open is a fault with the sentence that opening would raise, never an exception.

    remains = open_remains(root, subject="ana", ask=None)
    remains.faults
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedmem import paths
from fedmem.errors import FedmemError, NothingMatched, Refused, VerificationFailed
from fedmem.storage.files import Files
from fedmem.vault import opening
from fedmem.vault.crypto import header as public
from fedmem.vault.crypto.header import Header
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.crypto.keystore import Ask
from fedmem.vault.store import acknowledgement
from fedmem.vault.store.acknowledgement import Acknowledged
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import Database

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fault:
    """A part of a vault that does not fit, and the sentence that says why."""

    part: str
    message: str


@dataclass
class Remains:
    """The parts of a vault that open.

    Attributes:
        header: from the vault, or from the copy beside its keys.
        core: None where header, keys, table or database do not open at all.
        faults: what does not fit, in the order in which it was met.
    """

    header: Header | None = None
    core: Core | None = None
    note: Acknowledged | None = None
    faults: list[Fault] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note an error of the block as a fault of this part, and go on; a refusal is no fault."""
        try:
            yield
        except Refused:
            raise
        except FedmemError as error:
            self.faults.append(Fault(name, str(error)))

    def attempt(self, name: str, work: Callable[[], Result]) -> Result | None:
        """Return what `work` gives; None where its error is noted as a fault of this part."""
        results = []
        with self.part(name):
            results.append(work())
        return results[0] if results else None

    def close(self) -> None:
        """Close the database and forget the keys."""
        if self.core is not None:
            self.core.table.keys = {}
            self.core.close()


def open_remains(root: Path, *, subject: str, ask: Ask | None, files: Files | None = None) -> Remains:
    """Open what is left of the vault at `root`.

    Args:
        ask: gives the passphrase in passphrase mode.

    Raises:
        NothingMatched: there is neither a header nor a key table. Refused: the vault of another subject.
    """
    opening.disable_core_dumps()
    files, remains = files or Files(), Remains()
    if not (root / public.NAME).is_file() and not (root / opening.TABLE).is_file():
        raise NothingMatched(f"There is no vault at {root}: neither {public.NAME} nor {opening.TABLE} is there.")
    remains.header = remains.attempt(public.NAME, lambda: _header(files, root)) or remains.attempt(
        "copy of vault.json beside the keys", lambda: _copied_header(files, root)
    )
    if remains.header is not None:
        _open_core(files, root, remains, remains.header, subject, ask)
    return remains


def _header(files: Files, root: Path) -> Header:
    header, _ = opening.read_header(files, root)
    if (root / opening.TABLE).is_file():
        opening.check_same_vault(files, root, header)
    return header


def _copied_header(files: Files, root: Path) -> Header:
    vault_id = str(opening.table_header(files, root).get("vault"))
    if not re.fullmatch("[0-9a-f]{32}", vault_id):  # it becomes the name of a folder
        raise VerificationFailed("The key table names no vault. Restore the vault from a backup.")
    return public.decode(files.read(paths.slots_dir() / vault_id / public.NAME))


def _open_core(files: Files, root: Path, remains: Remains, header: Header, subject: str, ask: Ask | None) -> None:
    slots = paths.slots_dir() / header.id
    keystore = remains.attempt("keys", lambda: public.open_keystore(header, files, slots, ask))
    if keystore is None:
        return
    remains.note = acknowledgement.noted(keystore)
    table = KeyTable(files, root / opening.TABLE, keystore, header.id)
    with remains.part(opening.TABLE):
        table.load_any_age()
        opening.check_subject(table, subject)  # Refused goes on to the caller
        table.load()
    if not table.facts:
        return
    if (root / public.NAME).is_file():
        with remains.part(public.NAME):
            opening.check_sealed(table, files.read(root / public.NAME), subject)
    with remains.part(opening.DATABASE):
        database = Database(root / opening.DATABASE, write=False)
        # `write` keeps the generation from being compared: this is no reader that an erasure waits for.
        remains.core = Core(root, header.id, header.simulated, files, table.keystore, table, database, write=True)
