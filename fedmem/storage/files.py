"""Durable file operations: replace, append, copy and remove files so that a crash leaves the old or the new state.

Invariants
- `replace` leaves the old bytes or the new bytes of a file. It writes a temporary file, calls fsync, renames the
  temporary file, and calls fsync on the folder (I7).
- Callers pass ciphertext or public facts only, so a temporary file holds nothing else (I8).
- An `OSError` becomes a `StorageError`. The temporary file is removed, and the old state stays complete.
- `hook` is called before each primitive operation, so that a test can simulate a power cut between any two.

>>> import tempfile, pathlib
>>> with tempfile.TemporaryDirectory() as folder:
...     Files().replace(pathlib.Path(folder, "a"), b"new")
...     Files().read(pathlib.Path(folder, "a"))
b'new'
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fedmem.errors import NothingMatched, StorageError

TEMPORARY = ".tmp"
CHUNK_BYTES = 1 << 20  # read at a time
Hook = Callable[[str, Path], None]

_ADVICE = {
    errno.ENOSPC: "The disk is full: free some space and repeat the command.",
    errno.EDQUOT: "The disk quota is used up: free some space and repeat the command.",
    errno.EROFS: "The file system is read-only: mount it writable and repeat the command.",
    errno.ENOENT: "A file is missing: put it back, or fetch or build the folder again.",
    errno.ENOLCK: "This file system has no file locks: move the vault to a local disk.",
    errno.EOPNOTSUPP: "This file system cannot do this: move the vault to a local disk.",
    errno.EACCES: "Permission is denied: give this user access to the folder and repeat the command.",
}


@contextlib.contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that says what to do next.

    Args:
        action: a verb and its object; it completes the sentence "Could not …".

    Raises:
        StorageError: an `OSError` was raised inside the block.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Check the disk and repeat the command.")
        raise StorageError(f"Could not {action}: {error.strerror or 'input/output error'}. {advice}") from error


class Files:
    """Durable file operations on one machine.

    Methods raise StorageError if the operating system reports an error.

    Args:
        hook: called with (operation, path) before each primitive operation. An exception of the hook stops the
            operation.
    """

    def __init__(self, hook: Hook | None = None) -> None:
        self._hook = hook or (lambda operation, path: None)

    def make_folder(self, path: Path) -> None:
        """Create `path` and its missing parents, with access for this user only; do not change existing folders.

        Args:
            path: the folder; it may exist.
        """
        with storage_errors(f"create the folder {path.name}"):
            self._hook("mkdir", path)
            # `parents=True` would create the parent folders with a mode that lets other users read them.
            for folder in reversed([path, *path.parents]):
                if not folder.exists():
                    folder.mkdir(mode=0o700, exist_ok=True)

    def read(self, path: Path, *, limit: int | None = None) -> bytes:
        """Return the bytes of `path`, or its first `limit` bytes.

        Args:
            path: the file.
            limit: the most bytes to read, at least 0; None for the whole file.

        Raises:
            NothingMatched: there is no such file. StorageError: it cannot be read.
        """
        with storage_errors(f"read {path.name}"):
            self._hook("read", path)
            try:
                with path.open("rb") as file:
                    return file.read() if limit is None else file.read(limit)
            except FileNotFoundError:
                raise NothingMatched(f"There is no file {path.name} in {path.parent}.") from None

    def replace(self, path: Path, data: bytes) -> None:
        """Write `data` as the new content of `path`, durably; after an error or a crash the old content stays.

        Args:
            path: the file; it may be missing, its folder may not.
            data: the whole new content.

        Raises:
            StorageError: the file cannot be written. If only the last fsync of the folder failed, `path` may hold
                the new content.
        """
        temporary = path.with_name(secrets.token_hex(8) + TEMPORARY)
        with storage_errors(f"write {path.name}"):
            try:
                self._write(temporary, data)
                self._hook("rename", path)
                os.replace(temporary, path)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        self.sync_folder(path.parent)

    def _write(self, path: Path, data: bytes) -> None:
        self._hook("write", path)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            self._hook("fsync", path)
            os.fsync(file.fileno())

    def write_pieces(self, path: Path, pieces: Iterable[bytes | memoryview]) -> str:
        """Write pieces to a file, one after the other, durably; a crash may leave any part of them.

        Args:
            path: the file; what it held before is gone. Rename it when it is whole.
            pieces: the content, of any length.

        Returns:
            SHA-256 of the file, in hex.

        Raises:
            StorageError: the disk cannot be written.
        """
        written = hashlib.sha256()
        with storage_errors(f"write {path.name}"):
            self._hook("write", path)
            with path.open("wb") as file:
                for piece in pieces:
                    written.update(piece)
                    file.write(piece)
                file.flush()
                self._hook("fsync", path)
                os.fsync(file.fileno())
        return written.hexdigest()

    def rename(self, old: Path, new: Path) -> None:
        """Give a file its final name. Call `sync_folder` after the last of several.

        Args:
            old: the present name.
            new: the final name; a file of this name is replaced.
        """
        with storage_errors(f"write {new.name}"):
            self._hook("rename", new)
            os.replace(old, new)

    def overwrite(self, path: Path, at: int, data: bytes) -> None:
        """Overwrite an existing file in place from byte offset `at`, durably; a crash may leave any part of `data`.

        Args:
            path: the file.
            at: byte offset of the first byte, from 0.
            data: the new bytes from there on.

        Raises:
            StorageError: the file is missing, or cannot be written.
        """
        with storage_errors(f"write {path.name}"):
            self._hook("overwrite", path)
            with path.open("r+b") as file:
                file.seek(at)
                file.write(data)
                file.flush()
                self._hook("fsync", path)
                os.fsync(file.fileno())

    def append(self, path: Path, at: int, data: bytes, *, durable: bool = True) -> None:
        """Cut a file at byte offset `at` and append `data` there; create the file if it is missing.

        A crash may leave any part of `data`. The caller must be able to recognise incomplete data.

        Args:
            durable: if False, skip the fsync of the file; a crash may then lose `data` completely.

        Raises:
            StorageError: the data cannot be written.
        """
        with storage_errors(f"write {path.name}"):
            self._hook("write", path)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.ftruncate(handle, at)
                if os.pwrite(handle, data, at) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if durable:
                    self._hook("fsync", path)
                    os.fsync(handle)
            finally:
                os.close(handle)
        if at == 0:
            self.sync_folder(path.parent)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to its first `size` bytes. This needs no space on the disk, and is not made durable."""
        with storage_errors(f"cut {path.name}"):
            self._hook("truncate", path)
            os.truncate(path, size)

    def allocate(self, path: Path, size: int) -> None:
        """Make a file of `size` zero bytes whose blocks are really allocated; enlarge it if it exists.

        Raises:
            StorageError: the disk has no room; the file then has any size up to `size`.
        """
        with storage_errors(f"allocate {path.name}"):
            self._hook("write", path)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                _allocate(handle, size)
                self._hook("fsync", path)
                os.fsync(handle)
            finally:
                os.close(handle)
        self.sync_folder(path.parent)

    def copy(self, source: Path, target: Path) -> str:
        """Copy a file and return the SHA-256 of its bytes, hex. The copy is durable after `sync_folder`.

        Args:
            source: the file to read.
            target: the new file; it must not exist.

        Raises:
            StorageError: `target` exists already, or a file cannot be read or written.
        """
        sha256 = hashlib.sha256()
        with storage_errors(f"copy {source.name}"):
            self._hook("write", target)
            with (
                source.open("rb") as old,
                open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new,
            ):
                while chunk := old.read(CHUNK_BYTES):
                    sha256.update(chunk)
                    new.write(chunk)
                new.flush()
                self._hook("fsync", target)
                os.fsync(new.fileno())
        return sha256.hexdigest()

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes, hex.

        Args:
            path: the file, of any size.

        Raises:
            NothingMatched: there is no such file. StorageError: it cannot be read.
        """
        sha256 = hashlib.sha256()
        with storage_errors(f"read {path.name}"):
            self._hook("read", path)
            if not path.is_file():
                raise NothingMatched(f"There is no file {path.name} in {path.parent}.")
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    sha256.update(chunk)
        return sha256.hexdigest()

    def sync_file(self, path: Path) -> None:
        """Make a file that another library wrote durable: its bytes, and its name in the folder.

        Args:
            path: the file.
        """
        with storage_errors(f"sync {path.name}"):
            self._hook("fsync", path)
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self.sync_folder(path.parent)

    def rename_folder(self, old: Path, new: Path) -> None:
        """Rename a folder durably. `new` must be missing or an empty folder.

        Args:
            old: the present name.
            new: the final name.
        """
        with storage_errors(f"create {new.name}"):
            self._hook("rename", new)
            os.replace(old, new)
        self.sync_folder(new.parent)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder and its content durably; do nothing if it is missing.

        Args:
            path: the folder.
        """
        with storage_errors(f"remove {path.name}"):
            self._hook("unlink", path)
            if path.is_dir():
                shutil.rmtree(path)
        if path.parent.is_dir():
            self.sync_folder(path.parent)

    def sync_folder(self, path: Path) -> None:
        """Make the renames and removals of files in the folder `path` durable.

        Args:
            path: the folder.
        """
        with storage_errors(f"sync the folder {path.name}"):
            self._hook("fsync-folder", path)
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def unlink(self, path: Path) -> None:
        """Remove one file; do nothing if it is missing. The removal is durable after `sync_folder`.

        Args:
            path: the file.
        """
        with storage_errors(f"remove {path.name}"):
            self._hook("unlink", path)
            path.unlink(missing_ok=True)

    def destroy(self, path: Path) -> None:
        """Overwrite a small file with zeros, then remove it, durably. Do nothing if it is missing.

        The overwrite gives no guarantee: flash cells and snapshots may keep the old bytes.

        Args:
            path: the file; its content fits in memory.
        """
        if not path.exists():
            return
        with storage_errors(f"destroy {path.name}"):
            self._hook("overwrite", path)
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
        self.unlink(path)
        self.sync_folder(path.parent)

    def sweep(self, folder: Path) -> int:
        """Remove the temporary files that a crash left in `folder`; return their number.

        Args:
            folder: the folder; it may be missing. Its subfolders are not swept.
        """
        if not folder.is_dir():
            return 0
        temporary_files = [path for path in folder.iterdir() if path.name.endswith(TEMPORARY)]
        for path in temporary_files:
            self.unlink(path)
        return len(temporary_files)


def _allocate(handle: int, size: int) -> None:
    """Allocate the first `size` bytes of a file. Systems without `posix_fallocate` get written zeros."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    present = os.fstat(handle).st_size
    while present < size:
        present += os.pwrite(handle, bytes(min(CHUNK_BYTES, size - present)), present)
