"""Create or open a vault: acquire the lock, load the keys, and check every part before a part is used or changed.

Invariants
- Core dumps are disabled before the first secret is in memory, when a vault is created and when it is opened.
- A vault is created, and opened for writing, under its writer lock. The lock is released when the vault is open.
- `vault.json` is written last, so an interrupted creation leaves no vault.
  The file `creating.tmp` marks an unfinished creation; leftovers are removed only if this mark is there.
- A reader and a writer refuse a vault whose parts do not fit together, before a byte of it is changed. Examples: a
  missing header, key table, database or log; an older one; one of another vault.

    core = create_vault(root, subject="ana", keystore="keyfile")
    core = open_vault(root, subject="ana", write=True)
"""

import contextlib
import hmac
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmem import paths
from fedmem.errors import Refused, VerificationFailed
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files
from fedmem.storage.ids import new_id
from fedmem.storage.locks import NEXT, WriterLock
from fedmem.vault.crypto import container, rekey, vault_header
from fedmem.vault.crypto.container import new_key
from fedmem.vault.crypto.device_key import DEVICE_KEY, public_pem
from fedmem.vault.crypto.key_table import LOG, KeyTable
from fedmem.vault.crypto.keystore import Ask
from fedmem.vault.crypto.vault_header import Header
from fedmem.vault.store import acknowledgement, inventory, ledger_anchor
from fedmem.vault.store.core import LOCK, Core, take_writer_lock
from fedmem.vault.store.database import SCHEMA, SEE_CHECK, Database
from fedmem.vault.store.topics import FACTS

TABLE, DATABASE = "table.fmk", "vault.db"
CREATING = "creating.tmp"
"""The name of the file that marks an unfinished creation. A writer removes it with other temporary files."""
TIMEOUT = 30.0
"""Seconds that a program waits for other writers, unless it asks for another time."""
_FOLDERS = ("blocks", "receipts")
_CONTENT = {TABLE, LOG, DATABASE, "vault.db-wal", "device.pub", "egress.log"}
_VAULT_NAMES = {*_CONTENT, *_FOLDERS, LOCK, LOCK + NEXT, "reserve", "vault.db-shm", "vault.db-journal", "leases",
                "training"}  # fmt: skip


class VaultExists(Refused):
    """An error: the folder for a new vault holds a vault already."""


def create_vault(
    root: Path,
    *,
    subject: str,
    keystore: str,
    ask: Ask | None = None,
    simulated: bool = False,
    files: Files | None = None,
    timeout: float = TIMEOUT,
) -> Core:
    """Create a vault in a new or empty folder and open it for writing.

    Args:
        root: the vault's folder.
        subject: the person whose data the vault holds; it never changes.
        keystore: keyfile, passphrase or keyring.
        ask: returns the passphrase; the passphrase keystore needs it.
        simulated: True marks the vault as simulated; the mark never changes.
        timeout: seconds to wait for another program that creates a vault here, and later for other writers.

    Returns:
        The core of the open vault. It still holds the writer lock.

    Raises:
        VaultExists: there is a vault already. Refused: the folder holds other files.
        VerificationFailed: the folder holds a vault that lost its header.
        Busy: another program creates a vault here. UsageError: there is no such keystore.
        KeystoreError: no passphrase or an empty one, or this machine has no such keystore. StorageError.
    """
    disable_core_dumps()
    files = files or Files()
    header = vault_header.new_facts(new_id(), keystore, simulated)
    _check_place(root)
    files.make_folder(root)
    writer = take_writer_lock(root, timeout)
    with _release_on_error(writer):
        _clear_place(files, root)
        core = _write_vault(files, root, header, subject, ask)
        core.writer, core.timeout = writer, timeout
        return core


def _write_vault(files: Files, root: Path, header: Header, subject: str, ask: Ask | None) -> Core:
    """Write all files of a new vault, the header last, and return its core."""
    files.replace(root / CREATING, b"")
    for name in _FOLDERS:
        files.make_folder(root / name)
    keystore = vault_header.start_keystore(header, files, paths.slots_dir() / header.id, ask)
    facts = {"subject": subject, "facts": digest(header.encode()), "ledger": new_id(), **FACTS}
    table = KeyTable.create(files, root / TABLE, keystore, header.id, facts, {facts["ledger"]: new_key()})
    (root / DATABASE).touch(mode=0o600)
    database = Database(root / DATABASE, write=True)
    database.create_tables()
    core = Core(root, header.id, header.simulated, files, keystore, table, database, write=True)
    acknowledgement.acknowledge(core)
    files.replace(root / "device.pub", public_pem(keystore.create(DEVICE_KEY)))
    vault_header.keep_copy(files, header)
    files.replace(root / vault_header.NAME, header.encode())  # the vault exists from here on
    files.unlink(root / CREATING)
    files.sync_folder(root)
    return core


def open_vault(
    root: Path,
    *,
    subject: str,
    ask: Ask | None = None,
    write: bool = True,
    files: Files | None = None,
    timeout: float = TIMEOUT,
) -> Core:
    """Open an existing vault. All checks run before the vault is changed.

    Args:
        root: the vault's folder.
        subject: the subject that the vault was created for.
        ask: returns the passphrase; the passphrase keystore needs it.
        write: False opens it for reading, without the writer lock.
        timeout: seconds to wait for other writers, now and before each change.

    Returns:
        The core of the open vault. For a writer, it still holds the writer lock, and an interrupted change is not
        completed or undone yet.

    Raises:
        NothingMatched: no vault here. Busy: other writers. KeystoreError: wrong passphrase or missing key.
        Refused: the vault of another subject. VersionMismatch: another format. StorageError.
        VerificationFailed: damaged, incomplete, or older than the last acknowledged change.
    """
    disable_core_dumps()
    files = files or Files()
    header, data = read_header(files, root)
    writer = take_writer_lock(root, timeout) if write else None
    with _release_on_error(writer):
        if writer is not None:  # while it waited, another writer may have moved the keys
            header, data = read_header(files, root)
        check_same_vault(files, root, header)
        keystore = vault_header.open_keystore(header, files, paths.slots_dir() / header.id, ask)
        note = acknowledgement.read_note(keystore)
        table = KeyTable.open(files, root / TABLE, keystore, header.id)
        check_sealed(table, data, subject)
        # Open for reading first: opening for writing would apply the write-ahead log before the checks.
        database = Database(root / DATABASE, write=False)
        core = Core(root, header.id, header.simulated, files, keystore, table, database, write, timeout)
        core.writer = writer
        try:
            _check(core, note)
            _prepare(core)
        except BaseException:
            core.database.close()
            raise
        return core


def _check(core: Core, note: acknowledgement.Acknowledged | None) -> None:
    """Check that the parts of an open vault fit together. Raises VerificationFailed, VersionMismatch."""
    inventory.check_tables(core.database)
    items = acknowledgement.items_of(core.database)
    acknowledgement.check(core.table, items, note)
    acknowledgement.check_serial(core)
    if core.write:  # a writer may have changed the table, and not yet the database, while a reader reads
        inventory.check_keys(core.table, items, core.database)
    ledger_anchor.check(core)


def _prepare(core: Core) -> None:
    """Reopen the database for reading or writing, in the newest schema; for a writer, complete a move of keys."""
    path, is_old_schema = core.root / DATABASE, core.database.version() != SCHEMA
    if core.write:
        core.database.close()
        rekey.finish_move(core.files, core.root, core.table)
        core.database = Database(path, write=True, lock=core.lock)
        core.database.migrate()
    elif is_old_schema:
        core.database.close()
        _migrate(core.root)
        core.database = Database(path, write=False, lock=core.lock)


def _migrate(root: Path) -> None:
    """Migrate the database of a vault to the newest schema, under the writer lock, before a reader opens it."""
    lock = take_writer_lock(root, TIMEOUT)
    try:
        writer = Database(root / DATABASE, write=True)
        try:
            writer.migrate()
        finally:
            writer.close()
    finally:
        lock.release()


def read_header(files: Files, root: Path) -> tuple[Header, bytes]:
    """Return the header of the vault at `root`, and its bytes.

    Args:
        files: the file layer.
        root: the vault's folder.

    Raises:
        NothingMatched: no vault here. VerificationFailed: the header of the vault is missing or damaged.
        VersionMismatch: another format.
    """
    if not (root / vault_header.NAME).is_file():
        _check_header_not_lost(root)
    return vault_header.read_facts(files, root)


def table_header(files: Files, root: Path) -> Mapping[str, Any]:
    """Return the public header of the key table. It is not authenticated.

    Args:
        files: the file layer.
        root: the vault's folder.

    Raises:
        VerificationFailed: the table is missing or damaged. VersionMismatch: another format.
    """
    if not (root / TABLE).is_file():
        raise VerificationFailed(f"The vault's key table {TABLE} is missing. {SEE_CHECK}")
    first_bytes = files.read(root / TABLE, limit=container.PREFIX.size + container.MAX_HEADER)
    return container.read_header(first_bytes, whole=False)[0]


def check_same_vault(files: Files, root: Path, header: Header) -> None:
    """Check that the header and the key table belong to one vault.

    Args:
        files: the file layer.
        root: the vault's folder.
        header: the header in it.

    Raises:
        VerificationFailed: they belong to two vaults, or the table is missing or damaged.
    """
    if table_header(files, root).get("vault") != header.id:
        raise VerificationFailed(f"{vault_header.NAME} and {TABLE} belong to two different vaults. {SEE_CHECK}")


def check_sealed(table: KeyTable, data: bytes, subject: str) -> None:
    """Check the header and the subject of a vault against the sealed facts of its key table.

    Guarantees
        A changed header is detected, because the table holds its digest, sealed.

    Args:
        table: the open key table.
        data: the bytes of vault.json.
        subject: the subject that the vault is opened for.

    Raises:
        VerificationFailed: the header was changed. Refused: the vault of another subject.
    """
    if not rekey.is_own_header(table, data):
        raise VerificationFailed("The vault's public facts were changed. Restore vault.json from a backup.")
    check_subject(table, subject)


def check_subject(table: KeyTable, subject: str) -> None:
    """Check that the key table belongs to a vault of this subject.

    Args:
        table: the open key table.
        subject: the subject that the vault is opened for.

    Raises:
        Refused: the vault of another subject.
    """
    if not hmac.compare_digest(table.facts["subject"].encode(), subject.encode()):
        raise Refused("This vault belongs to another subject. Open it for the subject it was created for.")


def disable_core_dumps() -> None:
    """Set the soft limit of core dumps to 0, so that a crash does not write keys and records to a file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _check_place(root: Path) -> None:
    """Check that a vault can be created at `root`. Raises VaultExists, Refused, VerificationFailed."""
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if vault_header.NAME in names:
        raise VaultExists(f"There is a vault at {root} already. Open it, or choose another folder.")
    if any(name not in _VAULT_NAMES and not name.endswith(".tmp") for name in names):
        raise Refused(f"The folder {root} is not empty. Choose a new or empty folder for the vault.")
    _check_header_not_lost(root)


def _check_header_not_lost(root: Path) -> None:
    """Raise VerificationFailed if the folder `root` holds a vault without its `vault.json`."""
    if not root.is_dir() or (root / CREATING).exists():
        return
    has_content = any(any((root / name).iterdir()) for name in _FOLDERS if (root / name).is_dir())
    has_content = has_content or any((root / name).exists() for name in _CONTENT)
    # The header is checked last: another program may have completed a creation in the meantime.
    if has_content and not (root / vault_header.NAME).is_file():
        raise VerificationFailed(
            f"The vault at {root} has lost its header {vault_header.NAME}. {SEE_CHECK} A folder in which no vault was "
            "ever finished can be removed by hand."
        )


def _clear_place(files: Files, root: Path) -> None:
    """Remove the files of an interrupted creation. The caller holds the writer lock."""
    _check_place(root)
    for path in root.iterdir():
        if path.is_dir():
            files.remove_folder(path)
        elif path.name not in (LOCK, LOCK + NEXT):
            files.unlink(path)


@contextlib.contextmanager
def _release_on_error(writer: WriterLock | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if writer is not None:
            writer.release()
        raise
