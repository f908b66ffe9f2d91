"""The item database: SQLite through SQLAlchemy. It holds ids, times, states and ciphertext only.

Invariants
- Columns hold random ids, times, states, hash-chain digests, journals of random ids, and ciphertext (I8).
- WAL, synchronous=FULL, secure_delete=ON, temp_store=MEMORY: set and asserted on every connection.
- A transaction is whole or absent (I7); a full disk is a StorageError and changes nothing.
- Every transaction that changes a row raises the file's revision by one, so that an older file, or a missing log, is
  noticed.
- A connection for reading changes no byte of the file or of its log, also when it is closed.
- A missing database is never replaced by an empty one.
- A connection is closed before a fork. One that is in use then is neither used nor closed in the child, which refuses
  to open the file.
- `PRAGMA user_version` is the schema's version. An older file is migrated one version at a time, each step whole or
  absent; a newer one is a VersionMismatch.

>>> sorted(Base.metadata.tables)
['blocks', 'copies', 'erasures', 'events', 'records', 'revision', 'runs']
"""

import contextlib
import ctypes
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import CheckConstraint, Connection, LargeBinary, create_engine, event, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from fedmem.errors import Busy, Refused, StorageError, VerificationFailed, VersionMismatch
from fedmem.storage.files import storage_errors
from fedmem.storage.forks import ProcessLock, suspend_at_fork, watch

# Name -> (value to set, expected answer); FULL is 2, ON is 1, MEMORY is 2.
PRAGMAS: dict[str, tuple[str, object]] = {
    "journal_mode": ("WAL", "wal"),
    "synchronous": ("FULL", 2),
    "secure_delete": ("ON", 1),
    "temp_store": ("MEMORY", 2),
    "foreign_keys": ("ON", 1),
    "busy_timeout": ("2000", 2000),
}


class Base(DeclarativeBase):
    """The root of the tables."""


class RecordRow(Base):
    """One record: text, topic, path and vector in `sealed`."""

    __tablename__ = "records"
    id: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[float]
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class BlockRow(Base):
    """One block version: pending until its run key is destroyed, then live. Its facts are in `sealed`."""

    __tablename__ = "blocks"
    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    created: Mapped[float]
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class RunRow(Base):
    """One training run: open, finishing, finished or failed."""

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str]
    block_id: Mapped[str]
    state: Mapped[str]
    created: Mapped[float]
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class EventRow(Base):
    """One ledger event; `digest` chains it to the one before."""

    __tablename__ = "events"
    seq: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str]
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class ErasureRow(Base):
    """One erasure; `journal` is canonical JSON of random ids and ciphertext digests."""

    __tablename__ = "erasures"
    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    created: Mapped[float]
    journal: Mapped[str]


class CopyRow(Base):
    """One recovery kit or backup outside the vault, made at `generation`; its path is in `sealed`."""

    __tablename__ = "copies"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    generation: Mapped[int]
    created: Mapped[float]
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class RevisionRow(Base):
    """The number of transactions that changed a row, and the sealed serial of the key table at the last one."""

    __tablename__ = "revision"
    __table_args__ = (CheckConstraint("id = 1"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    table_serial: Mapped[bytes | None] = mapped_column(LargeBinary)


FIRST_REVISION = 1 << 40  # so that SQLite stores every number in six bytes, and an update never moves the cell
FIRST_ROW = text("INSERT INTO revision (id, number) VALUES (1, :first)").bindparams(first=FIRST_REVISION)

COUNT_UP = text("UPDATE revision SET number = number + 1, table_serial = coalesce(:serial, table_serial)")


def _add_copies(connection: Connection) -> None:
    """Migrate from 0 to 1: add the register of recovery kits and backups."""
    connection.execute(
        text(
            "CREATE TABLE copies (id VARCHAR NOT NULL PRIMARY KEY, kind VARCHAR NOT NULL, generation INTEGER NOT NULL, "
            "created DOUBLE NOT NULL, sealed BLOB NOT NULL)"
        )
    )


def _add_revision(connection: Connection) -> None:
    """Migrate from 1 to 2: add the revision of the file."""
    connection.execute(
        text("CREATE TABLE revision (id INTEGER NOT NULL PRIMARY KEY, number INTEGER NOT NULL, CHECK (id = 1))")
    )
    connection.execute(FIRST_ROW)


def _add_table_serial(connection: Connection) -> None:
    """Migrate from 2 to 3: add the sealed serial of the key table."""
    connection.execute(text("ALTER TABLE revision ADD COLUMN table_serial BLOB"))


# A released step never changes. A new schema is one more step, whose result equals `Base`.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_add_copies, _add_revision, _add_table_serial)
SCHEMA = len(MIGRATIONS)


SEE_CHECK = (
    "Nothing was changed. Put the newest file back; `fedmem vault check` says what does not fit, and "
    "`fedmem vault repair` saves what still opens into a new vault."
)


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turn SQLite's errors into typed ones, without the text or values of a statement."""
    try:
        yield
    except OperationalError as error:
        if "locked" in str(error.orig) or "busy" in str(error.orig):
            raise Busy("The vault's database is in use by another process. Close it and repeat the command.") from None
        raise StorageError(
            "The vault's database could not be written; nothing changed. Free some disk space and repeat the command."
        ) from None
    except DatabaseError:
        raise VerificationFailed("The vault's database is damaged. Restore the vault from a backup.") from None


_inherited_files: set[tuple[int, int]] = set()


def _file_id(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


class Database:
    """The item database of one vault.

    Args:
        path: the SQLite file, which exists.
        write: False opens the database for reading; every change is then refused.
        lock: the lock that every method takes; a new one if it is left out.

    Attributes:
        seal_serial: returns the sealed serial of the key table, which each change stores; None keeps the stored one.

    Raises:
        VerificationFailed: the file is missing, or it is empty and opened for reading.
        Refused: a connection to the file was in use while this process was forked.
    """

    def __init__(self, path: Path, *, write: bool, lock: ProcessLock | None = None) -> None:
        # Beside an empty file SQLite removes the log, which may hold all rows.
        if not path.is_file() or (not write and not path.stat().st_size):
            raise VerificationFailed(f"The vault's database {path.name} is missing or empty. {SEE_CHECK}")
        if _file_id(path) in _inherited_files:
            raise Refused(
                "This process was forked while another thread used the vault, so it cannot open it. Fork before that."
            )
        self.lock = lock or ProcessLock()
        self._write, self._path = write, path
        self.seal_serial: Callable[[], bytes | None] = lambda: None
        self._connection: sqlite3.Connection | None = None
        self._engine = create_engine("sqlite://", creator=self._connect, poolclass=StaticPool, hide_parameters=True)
        event.listen(self._engine, "connect", self._prepare)
        self._sessions = 0
        watch(self)
        suspend_at_fork(self)

    def create_tables(self) -> None:
        """Create the tables of a new vault."""
        with self._changing() as connection:
            Base.metadata.create_all(connection)
            connection.execute(FIRST_ROW)
            connection.execute(text(f"PRAGMA user_version = {SCHEMA}"))

    def version(self) -> int:
        """Return the schema's version of the file. Raises VersionMismatch if this fedmem does not know it."""
        with self.lock, database_errors(), self._engine.connect() as connection:
            version = int(connection.execute(text("PRAGMA user_version")).scalar_one())
        if not 0 <= version <= SCHEMA:
            raise VersionMismatch(
                f"The vault's database has version {version}; this fedmem knows versions up to {SCHEMA}. Update fedmem."
            )
        return version

    def migrate(self) -> None:
        """Migrate an older file to this version, one step at a time. Raises VersionMismatch, StorageError."""
        for step in range(self.version(), SCHEMA):
            with self._changing() as connection:
                MIGRATIONS[step](connection)
                connection.execute(text(f"PRAGMA user_version = {step + 1}"))

    def copy_to(self, path: Path) -> None:
        """Write a complete copy of the database, from one transaction, to a file that does not exist yet.

        Args:
            path: the new file; it is readable by the user only.

        Raises:
            StorageError: the copy cannot be written; a part of it may be left.
        """
        with storage_errors(f"write {path.name}"):
            path.touch(mode=0o600, exist_ok=False)  # SQLite would let others read it
        with self._autocommit() as connection:
            connection.execute(text("VACUUM INTO :path"), {"path": str(path)})

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Open one transaction under the lock: committed at the end, rolled back on any error."""
        with self.lock, database_errors(), Session(self._engine) as session, session.begin():
            session.connection()
            before = self._changes()
            self._sessions += 1
            try:
                yield session
            finally:
                self._sessions -= 1
            session.flush()
            if self._changes() != before:
                session.execute(COUNT_UP, {"serial": self.seal_serial()})

    def revision(self) -> int:
        """Return the number of changing transactions, from `FIRST_REVISION` on; 0 in a file of an older schema."""
        if self.version() < 2:
            return 0
        with self.lock, database_errors(), self._engine.connect() as connection:
            return int(connection.execute(text("SELECT number FROM revision")).scalar_one())

    def table_serial(self) -> bytes | None:
        """Return the sealed serial of the key table at the last change; None if the file does not hold one."""
        if self.version() < 3:
            return None
        with self.lock, database_errors(), self._engine.connect() as connection:
            serial = connection.execute(text("SELECT table_serial FROM revision")).scalar_one()
        return None if serial is None else bytes(serial)

    def advance_revision(self, least: int) -> None:
        """Raise the revision to `least` if it is lower, so that a restored file is not taken for an older one.

        Args:
            least: the lowest revision that the database may have afterwards.
        """
        with self.session() as session:
            session.execute(text("UPDATE revision SET number = max(number, :least)"), {"least": least})

    def checkpoint(self) -> bool:
        """Move the log into the database and empty it. Return False if a reader keeps the log in use."""
        with self.lock, database_errors(), self._engine.connect() as connection:
            is_busy = connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).scalar_one()
        return not is_busy

    def overwrite_log(self) -> None:
        """Overwrite the rest of a failed commit in the log. After a crash SQLite would read it as committed."""
        with self._autocommit() as connection:
            version = connection.execute(text("PRAGMA user_version")).scalar_one()
            connection.execute(text(f"PRAGMA user_version = {int(version)}"))

    def vacuum(self) -> None:
        """Rebuild the file, so that no page keeps a deleted cell."""
        with self._autocommit() as connection:
            connection.execute(text("VACUUM"))

    def tables(self) -> set[str]:
        """Return the names of the tables in the file."""
        with self.lock, database_errors(), self._engine.connect() as connection:
            rows = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
            return {str(name) for (name,) in rows}

    def check_integrity(self) -> None:
        """Read every page of the file. Raises VerificationFailed if one is damaged."""
        with self.lock, database_errors(), self._engine.connect() as connection:
            answer = connection.execute(text("PRAGMA integrity_check")).scalar_one()
        if answer != "ok":
            raise VerificationFailed(f"The vault's database has damaged pages. {SEE_CHECK}")

    def close(self) -> None:
        """Close the connection."""
        with self.lock:
            self._engine.dispose()
            self._connection = None

    def suspend(self, timeout: float) -> bool:
        """Close the connection before a fork: SQLite keeps state for each open file, which a child would use on.

        Args:
            timeout: seconds to wait for the thread that uses the database.

        Returns:
            True if the connection is closed, and the lock is held.
        """
        if not self.lock.acquire_within(timeout):
            return False
        if self._sessions:  # the thread that forks is in the middle of a transaction
            self.lock.release()
            return False
        self.close()
        return True

    def resume(self) -> None:
        """Release the lock after the fork. The next use connects again."""
        self.lock.release()

    def forbid(self) -> None:
        """Refuse to open this file in a child that inherits a connection in use."""
        _inherited_files.add(_file_id(self._path))

    def disown(self) -> None:
        """Keep the inherited connection open for ever in a forked child.

        Closing it there could write the parent's log into the file (SQLite, "How To Corrupt", section 2.6).
        """
        if self._connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))

    def _connect(self) -> sqlite3.Connection:
        # The URI sets the mode; as_uri quotes the characters of the path that have a meaning in a URI.
        uri = f"{self._path.absolute().as_uri()}?mode={'rw' if self._write else 'ro'}"
        self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        return self._connection

    def _changes(self) -> int:
        return self._connection.total_changes if self._connection is not None else 0

    @contextlib.contextmanager
    def _autocommit(self) -> Iterator[Connection]:
        """Open a connection for statements that must not stand in a transaction."""
        with self.lock, database_errors(), self._engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Connection]:
        """Open one transaction that may change the schema, which Python's driver would commit in parts."""
        with self.lock, database_errors(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    def _prepare(self, connection: sqlite3.Connection, record: Any) -> None:
        for name, (value, expected) in PRAGMAS.items():
            connection.execute(f"PRAGMA {name}={value}")
            (answer,) = connection.execute(f"PRAGMA {name}").fetchone()
            if answer != expected:
                raise StorageError(
                    f"SQLite did not accept {name}={value}, which the vault needs. Use another SQLite build."
                )
        connection.execute(f"PRAGMA query_only={'OFF' if self._write else 'ON'}")
