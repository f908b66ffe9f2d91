"""Open the intact parts of a damaged vault for reading: `check` lists the faults, and `repair` saves the content.

Invariants
- The vault is not changed: files are read, the database is opened for reading only, no lock or lease is acquired.
- Only a part that decrypts is used, so a header or key table of another vault opens nothing.
- A part that does not open becomes a fault with the error message of opening. It raises no exception.

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
from fedmem.vault.crypto import vault_header
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.crypto.keystore import Ask
from fedmem.vault.crypto.vault_header import Header
from fedmem.vault.store import acknowledgement
from fedmem.vault.store.acknowledgement import Acknowledged
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import Database

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fault:
    """A part of a vault that is damaged or does not fit the others, and the reason."""

    part: str
    message: str


@dataclass
class Remains:
    """The parts of a vault that open.

    Attributes:
        header: the header of the vault, or its copy beside the keys; None if neither can be read.
        core: None if the header, the keys, the key table or the database do not open.
        note: the change that the keystore has noted as acknowledged.
        faults: the faults, in the order of the checks.
    """

    header: Header | None = None
    core: Core | None = None
    note: Acknowledged | None = None
    faults: list[Fault] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Turn an error inside the block into a fault of this part. Refused is raised and is no fault.

        Args:
            name: name of the part in the fault.
        """
        try:
            yield
        except Refused:
            raise
        except FedmemError as error:
            self.faults.append(Fault(name, str(error)))

    def attempt(self, name: str, work: Callable[[], Result]) -> Result | None:
        """Return the result of `work`, or None if it fails; its error becomes a fault of this part.

        Args:
            name: name of the part in the fault.
            work: opens or reads the part.
        """
        results = []
        with self.part(name):
            results.append(work())
        return results[0] if results else None

    def close(self) -> None:
        """Close the database and remove the keys from memory."""
        if self.core is not None:
            self.core.table.keys = {}
            self.core.close()


def open_remains(root: Path, *, subject: str, ask: Ask | None, files: Files | None = None) -> Remains:
    """Open the intact parts of the vault at `root`.

    Args:
        subject: the subject that the vault was created for.
        ask: returns the passphrase; the passphrase keystore needs it.

    Raises:
        NothingMatched: there is neither a header nor a key table. Refused: the vault of another subject.
    """
    opening.disable_core_dumps()
    files, remains = files or Files(), Remains()
    if not (root / vault_header.NAME).is_file() and not (root / opening.TABLE).is_file():
        raise NothingMatched(f"There is no vault at {root}: neither {vault_header.NAME} nor {opening.TABLE} is there.")
    remains.header = remains.attempt(vault_header.NAME, lambda: _header(files, root)) or remains.attempt(
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
    return vault_header.decode(files.read(paths.slots_dir() / vault_id / vault_header.NAME))


def _open_core(files: Files, root: Path, remains: Remains, header: Header, subject: str, ask: Ask | None) -> None:
    slots = paths.slots_dir() / header.id
    keystore = remains.attempt("keys", lambda: vault_header.open_keystore(header, files, slots, ask))
    if keystore is None:
        return
    remains.note = acknowledgement.read_note(keystore)
    table = KeyTable(files, root / opening.TABLE, keystore, header.id)
    with remains.part(opening.TABLE):
        table.load_any_age()
        opening.check_subject(table, subject)  # Refused is raised to the caller
        table.load()
    if not table.facts:
        return
    if (root / vault_header.NAME).is_file():
        with remains.part(vault_header.NAME):
            opening.check_sealed(table, files.read(root / vault_header.NAME), subject)
    with remains.part(opening.DATABASE):
        database = Database(root / opening.DATABASE, write=False)
        # `write=True` turns off the check of the generation: an erasure does not wait for this reader.
        remains.core = Core(root, header.id, header.simulated, files, table.keystore, table, database, write=True)
