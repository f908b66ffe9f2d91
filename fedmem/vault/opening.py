"""Make a vault, or open one: the lock, the keys, and the checks that come before anything is believed or changed.

Invariants
- Core dumps are off before the first secret is in memory, in creation as in opening.
- A vault is made under its writer lock. `vault.json` is written last, so that a creation that was cut is no vault; a
  mark says that leftovers are of a creation, and only then are they removed.
- What does not fit together is refused, by a reader as by a writer, before a byte of the vault is changed: a missing
  header, table, database or log, an older one, another vault's.

    core = make(root, subject="ana", keystore="keyfile")
    core = unlock(root, subject="ana", write=True)
"""

import contextlib
import hmac
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedmem import paths
from fedmem.errors import Refused, VerificationFailed
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files
from fedmem.storage.ids import new_id
from fedmem.storage.locks import WriterLock
from fedmem.vault.crypto import container, rekey
from fedmem.vault.crypto import header as public
from fedmem.vault.crypto.container import new_key
from fedmem.vault.crypto.header import Header
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.crypto.keystore import Ask
from fedmem.vault.store import acknowledgement, inventory
from fedmem.vault.store import ledger_anchor as heads
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import SCHEMA, SEE_CHECK, Database
from fedmem.vault.store.topics import FACTS

DEVICE_KEY = "device"
TABLE, DATABASE, LOCK = "table.fmk", "vault.db", "lock"
CREATING = "creating.tmp"
"""Marks a creation that has not ended. A writer removes it with other temporary files."""
_FOLDERS = ("blocks", "receipts")
_CONTENT = {TABLE, DATABASE, "vault.db-wal", "device.pub", "egress.log"}
_OURS = {*_CONTENT, *_FOLDERS, LOCK, "vault.db-shm", "vault.db-journal", "leases", "training"}


class VaultExists(Refused):
    """A vault was to be made where one is already."""


def make(
    root: Path,
    *,
    subject: str,
    keystore: str,
    ask: Ask | None = None,
    simulated: bool = False,
    files: Files | None = None,
    timeout: float = 0.0,
) -> Core:
    """Make a vault in a new or empty folder and open it for writing.

    Args:
        keystore: keyfile, passphrase or keyring; fixed from now on.
        ask: gives the passphrase in passphrase mode.
        simulated: mark the vault as simulated, for ever.
        timeout: seconds to wait for another program that makes a vault here.

    Returns:
        The open parts of the vault.

    Raises:
        VaultExists: there is a vault already. Refused: the folder holds something else.
        VerificationFailed: the folder holds a vault that lost its header. Busy, KeystoreError, StorageError,
        UsageError.
    """
    disable_core_dumps()
    files = files or Files()
    header = public.new_facts(new_id(), keystore, simulated)
    _check_place(root)
    files.make_folder(root)
    writer = WriterLock(root / LOCK, timeout=timeout)
    with _released_on_error(writer):
        _clear_place(files, root)
        return _written(files, root, header, subject, ask, writer)


def _written(files: Files, root: Path, header: Header, subject: str, ask: Ask | None, writer: WriterLock) -> Core:
    """Write every file of a new vault, the header last."""
    files.replace(root / CREATING, b"")
    for name in _FOLDERS:
        files.make_folder(root / name)
    keystore = public.start_keystore(header, files, paths.slots_dir() / header.id, ask)
    sealed = {"subject": subject, "facts": digest(header.encode()), "ledger": new_id(), **FACTS}
    table = KeyTable.create(files, root / TABLE, keystore, header.id, sealed, {sealed["ledger"]: new_key()})
    (root / DATABASE).touch(mode=0o600)
    database = Database(root / DATABASE, write=True)
    database.create_tables()
    core = Core(root, header.id, header.simulated, files, keystore, table, database, write=True, writer=writer)
    acknowledgement.acknowledge(core)
    files.replace(root / "device.pub", public_pem(keystore.create(DEVICE_KEY)))
    public.keep_copy(files, header)
    files.replace(root / public.NAME, header.encode())  # from here on it is a vault
    files.unlink(root / CREATING)
    files.sync_folder(root)
    return core


def unlock(
    root: Path,
    *,
    subject: str,
    ask: Ask | None = None,
    write: bool = True,
    files: Files | None = None,
    timeout: float = 0.0,
) -> Core:
    """Open an existing vault, after every check; nothing is changed before all of them hold.

    Args:
        timeout: seconds that a writer waits for another one.

    Returns:
        The open parts of the vault; a writer's are not settled yet.

    Raises:
        NothingMatched: no vault here. Busy: another writer. KeystoreError: wrong passphrase or missing key.
        Refused: another subject's vault. VerificationFailed: damaged, incomplete or older than what was acknowledged.
        VersionMismatch: another format.
    """
    disable_core_dumps()
    files = files or Files()
    header, data = read_header(files, root)
    writer = WriterLock(root / LOCK, timeout=timeout) if write else None
    with _released_on_error(writer):
        check_same_vault(files, root, header)
        keystore = public.open_keystore(header, files, paths.slots_dir() / header.id, ask)
        note = acknowledgement.noted(keystore)
        table = KeyTable.open(files, root / TABLE, keystore, header.id)
        check_sealed(table, data, subject)
        # Not even the log of a database that does not fit is written into it: it is first opened for reading only.
        database = Database(root / DATABASE, write=False)
        core = Core(root, header.id, header.simulated, files, keystore, table, database, write=write, writer=writer)
        try:
            _check(core, note)
            _prepare(core)
        except BaseException:
            core.database.close()
            raise
        return core


def _check(core: Core, note: acknowledgement.Acknowledged | None) -> None:
    """Check that the parts of a vault fit together. Raises VerificationFailed, VersionMismatch."""
    inventory.check_tables(core.database)
    items = acknowledgement.items_of(core.database)
    acknowledgement.check(core.table, items, note)
    if core.write:  # beside a reader, a writer may be between table and database
        inventory.check_keys(core.table, items, core.database)
    heads.check(core)


def _prepare(core: Core) -> None:
    """Open the database for what it is wanted for, in the newest schema; a writer finishes a move of keys."""
    path, old = core.root / DATABASE, core.database.version() != SCHEMA
    if core.write:
        core.database.close()
        rekey.finish_move(core.files, core.root, core.table)
        core.database = Database(path, write=True, lock=core.lock)
        core.database.migrate()
    elif old:
        core.database.close()
        _migrate(core.root)
        core.database = Database(path, write=False, lock=core.lock)


def _migrate(root: Path) -> None:
    """Take an older schema up to this version, for a reader."""
    lock = WriterLock(root / LOCK)
    try:
        writer = Database(root / DATABASE, write=True)
        try:
            writer.migrate()
        finally:
            writer.close()
    finally:
        lock.release()


def read_header(files: Files, root: Path) -> tuple[Header, bytes]:
    """Return the public facts of the vault at `root`, and their bytes.

    Raises:
        NothingMatched: no vault here. VerificationFailed: a vault without its header, or a damaged one.
        VersionMismatch: another format.
    """
    if not (root / public.NAME).is_file():
        _check_header_not_lost(root)
    return public.read_facts(files, root)


def table_header(files: Files, root: Path) -> Mapping[str, Any]:
    """Return the public header of the key table at `root`. Raises VerificationFailed where it is missing or damaged."""
    if not (root / TABLE).is_file():
        raise VerificationFailed(f"The vault's key table {TABLE} is missing. {SEE_CHECK}")
    head = files.read(root / TABLE, limit=container.PREFIX.size + container.MAX_HEADER)
    return container.read_header(head, whole=False)[0]


def check_same_vault(files: Files, root: Path, header: Header) -> None:
    """Check that header and key table are of one vault. Raises VerificationFailed."""
    if table_header(files, root).get("vault") != header.id:
        raise VerificationFailed(f"{public.NAME} and {TABLE} belong to two different vaults. {SEE_CHECK}")


def check_sealed(table: KeyTable, data: bytes, subject: str) -> None:
    """Check that public facts and subject are those that the table names. Raises VerificationFailed, Refused."""
    if not rekey.is_own_header(table, data):
        raise VerificationFailed("The vault's public facts were changed. Restore vault.json from a backup.")
    check_subject(table, subject)


def check_subject(table: KeyTable, subject: str) -> None:
    """Check that the table is of a vault of this subject. Raises Refused."""
    if not hmac.compare_digest(table.facts["subject"].encode(), subject.encode()):
        raise Refused("This vault belongs to another subject. Open it for the subject it was created for.")


def public_pem(seed: bytes) -> bytes:
    """Return the public half of a device key, PEM: the content of `device.pub`."""
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def disable_core_dumps() -> None:
    """Set the soft limit of core dumps to 0: a crash must not write keys and records to a file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _check_place(root: Path) -> None:
    """Check that a vault may be made at `root`. Raises VaultExists, Refused, VerificationFailed."""
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if public.NAME in names:
        raise VaultExists(f"There is a vault at {root} already. Open it, or choose another folder.")
    if any(name not in _OURS and not name.endswith(".tmp") for name in names):
        raise Refused(f"The folder {root} is not empty. Choose a new or empty folder for the vault.")
    _check_header_not_lost(root)


def _check_header_not_lost(root: Path) -> None:
    """Check that no vault lies at `root` that lost its `vault.json`. Raises VerificationFailed."""
    if not root.is_dir() or (root / CREATING).exists():
        return
    filled = any(any((root / name).iterdir()) for name in _FOLDERS if (root / name).is_dir())
    filled = filled or any((root / name).exists() for name in _CONTENT)
    if filled and not (root / public.NAME).is_file():  # looked at last: another program may just have ended a creation
        raise VerificationFailed(
            f"The vault at {root} has lost its header {public.NAME}. {SEE_CHECK} A folder in which no vault was ever "
            "finished can be removed by hand."
        )


def _clear_place(files: Files, root: Path) -> None:
    """Remove what a creation left that was cut. Called under the writer lock."""
    _check_place(root)
    for path in root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            files.unlink(path)


@contextlib.contextmanager
def _released_on_error(writer: WriterLock | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if writer is not None:
            writer.release()
        raise
