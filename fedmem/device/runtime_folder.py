"""Make the runtime folder of a device: one folder for each vault, used by one vault process at a time.

Invariants
- The folder has mode 0700; every file in it is made with mode 0600.
- Its name is a digest of the vault's path, so it reveals neither subject nor vault.
- The token is new for each run. Token and socket are removed when the run ends.

    with runtime_folder(vault.root, agreement, shapes, release) as runtime:
        print(runtime.folder)
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from fedmem import paths
from fedmem.errors import Refused
from fedmem.federation.connection import SOCKET
from fedmem.federation.runtime import RELEASE, TERMS, TOKEN, Runtime
from fedmem.federation.socket_protocol import TOKEN_BYTES
from fedmem.federation.terms import Agreement
from fedmem.federation.wire import Shapes
from fedmem.storage.canonical import canonical_json, digest
from fedmem.storage.files import storage_errors
from fedmem.storage.locks import WriterLock


def place(root: Path) -> Path:
    """Return the runtime folder of the vault at `root`: under XDG_RUNTIME_DIR, else under fedmem's home.

    Args:
        root: folder of the vault.
    """
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime_dir) / "fedmem" if runtime_dir else paths.home() / "run"
    return base / digest(str(root.resolve()))[:16]


@contextlib.contextmanager
def runtime_folder(root: Path, agreement: Agreement, shapes: Shapes, release: Path) -> Iterator[Runtime]:
    """Make the folder and its files, and remove token and socket at the end.

    Args:
        root: the vault's folder.
        release: folder of the release that the terms name.

    Raises:
        Busy: another vault process runs for this vault.
        Refused: the folder belongs to another user, or others may enter it.
        StorageError: the folder cannot be made.
    """
    folder = place(root)
    with storage_errors("make the device's runtime folder"):
        for path in (folder.parent, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise Refused(f"Others may enter {folder}, or it is not yours. Remove it and start again.")
    lock = WriterLock(folder / "lock", "device's runtime folder")
    try:
        with storage_errors("write the device's runtime folder"):
            _write(folder / TERMS, _terms(agreement, shapes))
            _link(folder / RELEASE, release.resolve())
            _write(folder / TOKEN, secrets.token_bytes(TOKEN_BYTES))
        yield Runtime(folder)
    finally:
        for name in (TOKEN, SOCKET):
            (folder / name).unlink(missing_ok=True)
        lock.release()


def _terms(agreement: Agreement, shapes: Shapes) -> bytes:
    lists = {name: list(shape) for name, shape in shapes.items()}
    return canonical_json({"agreement": agreement.to_dict(), "shapes": lists})


def _write(file: Path, data: bytes) -> None:
    file.unlink(missing_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)


def _link(file: Path, target: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(target)
