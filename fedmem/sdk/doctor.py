"""Checks of this machine: can it keep what docs/design.md, §8 promises of keys, files and deletion?

Invariants
- A check reads and measures; what it writes is one empty database in a folder that it removes.
- `failed` means that a promise cannot be kept here; `warning` means that it holds with a limit that is named.
- Nothing of a vault's content is read.

>>> synced(Path("/home/ana/Dropbox/fedmem"))
True
"""

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmem import __version__, paths

State = Literal["ok", "warning", "failed"]
LOW_BYTES = 2 << 30  # a quickstart run with two releases needs less than this
FULL_BYTES = 64 << 20
# They write a changed block elsewhere, or keep what lies in a layer below: old bytes stay until a snapshot goes.
SNAPSHOTS = {"btrfs", "zfs", "bcachefs", "apfs", "nilfs2", "overlay", "overlayfs", "aufs", "fuse.mergerfs", "refs"}
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "9p", "fuse.sshfs", "fuse.rclone", "fuse.s3fs"}
SYNC_NAMES = {
    "dropbox",
    "onedrive",
    "google drive",
    "googledrive",
    "icloud",
    "icloud drive",
    "iclouddrive",
    "com~apple~clouddocs",
    "mobile documents",
    "nextcloud",
    "owncloud",
    "my drive",
    "box",
    "box sync",
    "pclouddrive",
    "megasync",
    "seafile",
    "synologydrive",
    "tresorit",
    "proton drive",
}
MARKERS = (".stfolder", ".dropbox", ".dropbox.cache", ".sync", ".seafile-data")  # files of such programs
PACKAGES = ("cryptography", "sqlalchemy", "numpy", "torch", "transformers", "opacus", "dp-accounting", "flwr", "ray")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    state: State
    detail: str


def examine(root: Path) -> list[Check]:
    """All checks, for vaults that would lie under `root` (it need not exist)."""
    here, slots = nearest(root), nearest(paths.slots_dir())
    folders = [check_folder("vaults", root, "failed"), check_folder("key slots", paths.slots_dir(), "failed")]
    return [
        *check_versions(),
        check_platform(),
        check_keystore(),
        *folders,
        check_sqlite(here),
        check_core_dumps(),
        check_swap(),
        check_filesystem(here),
        check_filesystem(slots, "file system of key slots"),
        check_synced(root),
        check_synced(paths.slots_dir(), "synced key slots"),
        check_space(here),
    ]


def check_versions() -> Iterator[Check]:
    """Versions of fedmem, Python, SQLite and the packages that are installed."""
    found = {"fedmem": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    yield Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def check_platform() -> Check:
    """Check that fedmem is tested on this operating system."""
    system = platform.system()
    if system == "Linux":
        return Check("platform", "ok", "Linux, where fedmem is tested")
    return Check("platform", "warning", f"{system} is not tested, and fsync may promise less than on Linux")


def check_keystore() -> Check:
    """Is there an OS keystore behind `keyring`?"""
    if has_keyring():
        return Check("keystore", "ok", "the operating system's keyring answers")
    return Check("keystore", "warning", "no OS keyring; open vaults with keystore 'passphrase' or 'keyfile'")


def has_keyring() -> bool:
    """Whether `keyring` has a backend that an operating system guards (not `fail`, `null` or a plain file)."""
    import keyring

    backend = keyring.get_keyring()
    # Below 1 `keyring` ranks what needs the user's consent: nothing at all, or a file in the clear.
    return any(float(one.priority) >= 1 for one in getattr(backend, "backends", [backend]))


def check_folder(name: str, folder: Path, worst: State) -> Check:
    """May anyone else read `folder`? One that is not there yet is made private when it is needed."""
    if not folder.exists():
        return Check(name, "ok", f"{folder} does not exist yet; it is created readable by you alone")
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        return Check(name, worst, f"{folder} belongs to another user")
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Check(name, worst, f"{folder} is open to other users: run `chmod 700 {folder}`")
    return Check(name, "ok", f"{folder} is readable by you alone")


def check_sqlite(here: Path) -> Check:
    """Does SQLite in this folder keep a write-ahead log, overwrite deleted rows, and keep temporary data in memory?"""
    wanted = {"journal_mode=WAL": "wal", "secure_delete=ON": 1, "synchronous=FULL": 2, "temp_store=MEMORY": 2}
    try:
        with tempfile.TemporaryDirectory(prefix="fedmem-doctor-", dir=here) as folder:
            missing = [name for name, value in wanted.items() if pragma(Path(folder), name) != value]
    except (OSError, sqlite3.Error) as error:
        return Check("sqlite", "failed", f"no database can be written in {here} ({type(error).__name__})")
    if missing:
        return Check("sqlite", "failed", f"SQLite does not hold {', '.join(missing)} in {here}")
    return Check("sqlite", "ok", "write-ahead log, secure_delete and in-memory temporary data hold")


def pragma(folder: Path, setting: str) -> object:
    """Set one pragma on a new database and read it back."""
    database = sqlite3.connect(folder / "probe.db")
    try:
        database.execute(f"PRAGMA {setting}")
        return database.execute(f"PRAGMA {setting.partition('=')[0]}").fetchone()[0]
    finally:
        database.close()


def check_core_dumps() -> Check:
    """Could a crash write the memory of the process to a disk?"""
    try:
        import resource
    except ImportError:
        return Check("core dumps", "warning", "this system has no limit on core dumps that fedmem can set")
    pattern = Path("/proc/sys/kernel/core_pattern")
    if pattern.exists() and pattern.read_text().startswith("|"):
        return Check(
            "core dumps", "warning", "the kernel pipes crashes to a program, which the size limit does not stop"
        )
    soft = resource.getrlimit(resource.RLIMIT_CORE)[0]
    return Check(
        "core dumps", "ok", "off" if soft == 0 else "on in this shell; fedmem turns them off in its own process"
    )


def check_swap() -> Check:
    """Could memory reach a swap device?"""
    table = Path("/proc/swaps")
    if table.exists() and len(table.read_text().splitlines()) < 2:
        return Check("swap", "ok", "none")
    return Check("swap", "warning", "memory may reach swap, which an erasure does not cover; encrypt it or turn it off")


def check_filesystem(here: Path, name: str = "file system") -> Check:
    """Does the file system keep old copies, or share files over a network?"""
    kind = filesystem(here)
    if kind in NETWORK:
        return Check(name, "failed", f"{here} is on {kind}: locks and SQLite's log need a local file system")
    if kind in SNAPSHOTS:
        return Check(
            name,
            "warning",
            f"{here} is on {kind}: it may keep old copies, which an erasure names as not covered",
        )
    return Check(name, "ok", kind or "unknown")


def filesystem(here: Path) -> str:
    """Type of the file system that holds `here`, empty where the system does not say."""
    mounts = Path("/proc/self/mounts")
    best, kind = "", ""
    for line in mounts.read_text().splitlines() if mounts.exists() else []:
        _, point, name, *_ = line.split()
        point = point.replace("\\040", " ")
        # The last of equal mount points is the one on top.
        if here.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind


def check_synced(root: Path, name: str = "synced folder") -> Check:
    """Is the folder one that a synchronising program copies elsewhere?"""
    if synced(root):
        return Check(name, "warning", f"{root} looks synchronised: copies elsewhere are not covered by an erasure")
    return Check(name, "ok", "no sign of one")


def synced(root: Path) -> bool:
    """Whether a parent's name, or its marker file, is that of a synchronising program."""
    parents = [root, *root.parents]
    return any(
        parent.name.lower().split(" - ")[0] in SYNC_NAMES or any((parent / mark).exists() for mark in MARKERS)
        for parent in parents
    )


def check_space(here: Path) -> Check:
    """Is there room for a vault and a run?"""
    free = shutil.disk_usage(here).free
    detail = f"{free / (1 << 30):.1f} GiB free in {here}"
    if free < FULL_BYTES:
        return Check("free space", "failed", f"{detail}: too little to write safely")
    return Check("free space", "ok" if free >= LOW_BYTES else "warning", detail)


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest parent that exists."""
    return next(parent for parent in [folder, *folder.parents] if parent.is_dir())
