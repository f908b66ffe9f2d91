"""Durable file operations: replace, append, copy and remove files so that a crash leaves the old or the new state.

Invariants
- A file is either its old bytes or its new bytes: write a temporary, fsync, rename, fsync the folder (I7).
- What is written here is already ciphertext or a public fact; a temporary file holds nothing else (I8).
- An `OSError` becomes a `StorageError`, the temporary file is removed, and the old state stays whole.
- Every primitive operation is announced to `hook` first, so that a test can cut the power between any two.

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
from collections.abc import Callable, Iterator
from pathlib import Path

from fedmem.errors import NothingMatched, StorageError

TEMPORARY = ".tmp"
PIECE = 1 << 20  # bytes read at a time
Hook = Callable[[str, Path], None]

_ADVICE = {
    errno.ENOSPC: "The disk is full: free some space and repeat the command.",
    errno.EDQUOT: "The disk quota is used up: free some space and repeat the command.",
    errno.EROFS: "The file system is read-only: mount it writable and repeat the command.",
    errno.EACCES: "Permission is denied: give this user access to the folder and repeat the command.",
}


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Check the disk and repeat the command.")
        raise StorageError(f"Could not {what}: {error.strerror or 'input/output error'}. {advice}") from error


class Files:
    """Durable file operations on one machine.

    Args:
        hook: called with (operation, path) before each primitive operation; what it raises, the operation raises.
    """

    def __init__(self, hook: Hook | None = None) -> None:
        self._hook = hook or (lambda operation, path: None)

    def make_folder(self, path: Path) -> None:
        """Create `path`, and what is missing above it, for this user only; existing folders are left as they are."""
        with storage_errors(f"create the folder {path.name}"):
            self._hook("mkdir", path)
            # `parents=True` would make the folders above with the mode that anyone may read.
            for folder in reversed([path, *path.parents]):
                if not folder.exists():
                    folder.mkdir(mode=0o700, exist_ok=True)

    def read(self, path: Path, *, limit: int | None = None) -> bytes:
        """The bytes of `path`, or its first `limit` bytes. Raises NothingMatched where there is no such file."""
        with storage_errors(f"read {path.name}"):
            self._hook("read", path)
            try:
                with path.open("rb") as file:
                    return file.read() if limit is None else file.read(limit)
            except FileNotFoundError:
                raise NothingMatched(f"There is no file {path.name} in {path.parent}.") from None

    def replace(self, path: Path, data: bytes) -> None:
        """Put `data` at `path`, whole and durable, or leave what was there."""
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

    def overwrite(self, path: Path, at: int, data: bytes) -> None:
        """Write `data` at offset `at` of an existing file, in place and durable; a crash may leave any part of it."""
        with storage_errors(f"write {path.name}"):
            self._hook("overwrite", path)
            with path.open("r+b") as file:
                file.seek(at)
                file.write(data)
                file.flush()
                self._hook("fsync", path)
                os.fsync(file.fileno())

    def append(self, path: Path, at: int, data: bytes, *, durable: bool = True) -> None:
        """Make `data` the end of a file from offset `at` on; a file that is missing is made with it.

        A crash may leave any part of `data`: the caller must know a whole piece from a torn one.
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

    def copy(self, source: Path, target: Path) -> str:
        """Copy a file to a place where none is, durable once the folder is synced; SHA-256 of its bytes, hex."""
        read = hashlib.sha256()
        with storage_errors(f"copy {source.name}"):
            self._hook("write", target)
            with (
                source.open("rb") as old,
                open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new,
            ):
                while piece := old.read(PIECE):
                    read.update(piece)
                    new.write(piece)
                new.flush()
                self._hook("fsync", target)
                os.fsync(new.fileno())
        return read.hexdigest()

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes, hex. Raises NothingMatched where there is no such file."""
        found = hashlib.sha256()
        with storage_errors(f"read {path.name}"):
            self._hook("read", path)
            if not path.is_file():
                raise NothingMatched(f"There is no file {path.name} in {path.parent}.")
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    found.update(piece)
        return found.hexdigest()

    def sync_file(self, path: Path) -> None:
        """Make the bytes of a file that another library wrote durable, and its name with them."""
        with storage_errors(f"sync {path.name}"):
            self._hook("fsync", path)
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self.sync_folder(path.parent)

    def rename_folder(self, old: Path, new: Path) -> None:
        """Give a folder its final name, durably; `new` is absent or an empty folder."""
        with storage_errors(f"create {new.name}"):
            self._hook("rename", new)
            os.replace(old, new)
        self.sync_folder(new.parent)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder with everything in it; a missing one is fine."""
        with storage_errors(f"remove {path.name}"):
            self._hook("unlink", path)
            if path.is_dir():
                shutil.rmtree(path)
        if path.parent.is_dir():
            self.sync_folder(path.parent)

    def sync_folder(self, path: Path) -> None:
        """Make renames and unlinks inside `path` durable."""
        with storage_errors(f"sync the folder {path.name}"):
            self._hook("fsync-folder", path)
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def unlink(self, path: Path) -> None:
        """Remove one file; a missing one is fine. Call `sync_folder` after the last of several."""
        with storage_errors(f"remove {path.name}"):
            self._hook("unlink", path)
            path.unlink(missing_ok=True)

    def destroy(self, path: Path) -> None:
        """Overwrite a small file with zeros, then remove it, durably.

        The overwrite is an effort, not a promise: flash cells and snapshots may keep the old bytes.
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
        """Remove temporary files that a crash left in `folder`; how many there were."""
        if not folder.is_dir():
            return 0
        left = [path for path in folder.iterdir() if path.name.endswith(TEMPORARY)]
        for path in left:
            self.unlink(path)
        return len(left)
