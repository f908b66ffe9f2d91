"""Checks that this machine can keep the promises of docs/design.md, §8 about keys, files and deletion.

Invariants
- A check reads and measures. It writes only an empty database in a temporary folder, and removes it.
- `failed` means that a promise cannot be kept on this machine. `warning` means that it holds with a stated limit.
- The content of vaults is not read.

    failed = [check for check in examine(vaults_dir()) if check.state == "failed"]
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
from fedmem.sdk.synced import is_synced

__all__ = ["Check", "State", "examine", "has_keyring"]
State = Literal["ok", "warning", "failed"]
LOW_BYTES = 2 << 30  # a quickstart run with two releases needs less than this
FULL_BYTES = 64 << 20
# These write a changed block to a new place, or keep a lower layer: old bytes stay until a snapshot is deleted.
SNAPSHOTS = {"btrfs", "zfs", "bcachefs", "apfs", "nilfs2", "overlay", "overlayfs", "aufs", "fuse.mergerfs", "refs"}
NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.davfs2", "fuse.gcsfuse",
    "fuse.glusterfs", "fuse.google-drive-ocamlfuse", "fuse.gvfsd-fuse", "fuse.onedriver", "fuse.rclone", "fuse.s3fs",
    "fuse.seadrive", "fuse.sshfs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs",
    "vboxsf",
}  # fmt: skip
PACKAGES = ("cryptography", "sqlalchemy", "numpy", "torch", "transformers", "opacus", "dp-accounting", "flwr", "ray")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: Name of the check.
        state: `ok`, `warning` or `failed`.
        detail: What was seen, and what to do.
    """

    name: str
    state: State
    detail: str


def examine(root: Path) -> list[Check]:
    """Run all checks for vaults below a folder.

    Args:
        root: Folder of vaults. It need not exist.
    """
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
        check_apart(root),
        check_space(here),
    ]


def check_versions() -> Iterator[Check]:
    """Report the versions of fedmem, Python, SQLite and the installed packages."""
    versions = {"fedmem": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    yield Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def check_platform() -> Check:
    """Check that fedmem is tested on this operating system."""
    system = platform.system()
    if system == "Linux":
        return Check("platform", "ok", "Linux, where fedmem is tested")
    return Check("platform", "warning", f"{system} is not tested, and fsync may promise less than on Linux")


def check_keystore() -> Check:
    """Check that `keyring` has a backend of the operating system."""
    if has_keyring():
        return Check("keystore", "ok", "the operating system's keyring answers")
    return Check("keystore", "warning", "no OS keyring; open vaults with keystore 'passphrase' or 'keyfile'")


def has_keyring() -> bool:
    """Return True if `keyring` has a backend that an operating system protects (not `fail`, `null` or a plain file)."""
    import keyring

    from fedmem.vault.crypto.os_keyring import protected_backends

    return bool(protected_backends(keyring.get_keyring()))


def check_folder(name: str, folder: Path, worst: State) -> Check:
    """Check that only this user can read a folder. A missing folder passes, since it is created private later.

    Args:
        name: Name of the check.
        folder: The folder.
        worst: State of the check if another user can read the folder.
    """
    if not folder.exists():
        return Check(name, "ok", f"{folder} does not exist yet; it is created readable by you alone")
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        return Check(name, worst, f"{folder} belongs to another user")
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Check(name, worst, f"{folder} is open to other users: run `chmod 700 {folder}`")
    return Check(name, "ok", f"{folder} is readable by you alone")


def check_sqlite(here: Path) -> Check:
    """Check that SQLite keeps a write-ahead log, overwrites deleted rows, and holds temporary data in memory.

    Args:
        here: An existing folder, to make a temporary database in.
    """
    expected = {"journal_mode=WAL": "wal", "secure_delete=ON": 1, "synchronous=FULL": 2, "temp_store=MEMORY": 2}
    try:
        with tempfile.TemporaryDirectory(prefix="fedmem-doctor-", dir=here) as folder:
            missing = [name for name, value in expected.items() if pragma(Path(folder), name) != value]
    except (OSError, sqlite3.Error) as error:
        return Check("sqlite", "failed", f"no database can be written in {here} ({type(error).__name__})")
    if missing:
        return Check("sqlite", "failed", f"SQLite does not hold {', '.join(missing)} in {here}")
    return Check("sqlite", "ok", "write-ahead log, secure_delete and in-memory temporary data hold")


def pragma(folder: Path, setting: str) -> object:
    """Set a pragma on a new database and return its value.

    Args:
        folder: Folder of the database.
        setting: The pragma as `NAME=VALUE`.
    """
    database = sqlite3.connect(folder / "probe.db")
    try:
        database.execute(f"PRAGMA {setting}")
        return database.execute(f"PRAGMA {setting.partition('=')[0]}").fetchone()[0]
    finally:
        database.close()


def check_core_dumps() -> Check:
    """Check that a crash cannot write the memory of the process to a disk."""
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
    """Check that memory cannot be written to a swap device."""
    table = Path("/proc/swaps")
    if table.exists() and len(table.read_text().splitlines()) < 2:
        return Check("swap", "ok", "none")
    return Check("swap", "warning", "memory may reach swap, which an erasure does not cover; encrypt it or turn it off")


def check_filesystem(here: Path, name: str = "file system") -> Check:
    """Check that the file system keeps no old copies and is not on a network.

    Args:
        here: An existing folder.
        name: Name of the check.
    """
    kind = filesystem(here)
    if kind in NETWORK:
        return Check(name, "failed", f"{here} is on {kind}: locks and SQLite's log need a local file system")
    if kind in SNAPSHOTS:
        return Check(
            name,
            "warning",
            f"{here} is on {kind}: it may keep old copies, which an erasure lists as not covered",
        )
    return Check(name, "ok", kind or "unknown")


def filesystem(here: Path) -> str:
    """Return the type of the file system of a folder. Return "" if the system does not tell it.

    Args:
        here: The folder.
    """
    mounts = Path("/proc/self/mounts")
    longest_point, kind = "", ""
    for line in mounts.read_text().splitlines() if mounts.exists() else []:
        _, point, name, *_ = line.split()
        point = point.replace("\\040", " ")
        # Of equal mount points the last one is on top.
        if here.resolve().is_relative_to(point) and len(point) >= len(longest_point):
            longest_point, kind = point, name
    return kind


def check_synced(root: Path, name: str = "synced folder") -> Check:
    """Check that no synchronising program copies the folder to another place.

    Args:
        root: The folder.
        name: Name of the check.
    """
    if is_synced(root):
        return Check(name, "warning", f"{root} looks synchronised: copies elsewhere are not covered by an erasure")
    return Check(name, "ok", "no sign of one")


def check_apart(root: Path) -> Check:
    """Check that key slots and vaults do not lie in one tree, which a backup would copy together.

    Args:
        root: Folder of the vaults.
    """
    slots, vaults = paths.slots_dir().resolve(), root.resolve()
    if slots.is_relative_to(vaults) or vaults.is_relative_to(slots) or slots.parent == vaults.parent:
        tree = slots.parent if slots.parent == vaults.parent else min(slots, vaults)
        return Check(
            "slots apart from vaults",
            "warning",
            f"key slots and vaults share the tree {tree}: an old copy of it opens what was erased since. Leave "
            f"{slots} out of backups, or keep the keys in the operating system's keyring",
        )
    return Check("slots apart from vaults", "ok", "they lie in different trees")


def check_space(here: Path) -> Check:
    """Check that there is space for a vault and a run.

    Args:
        here: An existing folder.
    """
    free = shutil.disk_usage(here).free
    detail = f"{free / (1 << 30):.1f} GiB free in {here}"
    if free < FULL_BYTES:
        return Check("free space", "failed", f"{detail}: too little to write safely")
    return Check("free space", "ok" if free >= LOW_BYTES else "warning", detail)


def nearest(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists.

    Args:
        folder: An absolute path.
    """
    return next(parent for parent in [folder, *folder.parents] if parent.is_dir())
