"""The published list of programs that copy folders to other machines, by the names and files that they leave.

Invariants
- docs/erasure.md publishes the list. A name matches in any case, with or without an account behind it, as in
  `OneDrive - Company`, `Dropbox (Personal)` and `GoogleDrive-ana@example.org`.
- The path is checked as it is written, and with its links resolved.
- A program that is not in the list is not found.

>>> is_synced(Path("/home/ana/Dropbox/fedmem")), is_synced(Path("/home/ana/Documents"))
(True, False)
"""

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MARKERS", "SYNC_NAMES", "is_synced"]
SYNC_NAMES = frozenset({
    "amazon drive", "box", "box sync", "cloudstation", "cloudstorage", "com~apple~clouddocs", "dropbox", "filen",
    "google drive", "googledrive", "icloud", "icloud drive", "iclouddrive", "insync", "internxt", "jottacloud",
    "kdrive", "mega", "megasync", "mobile documents", "my drive", "nextcloud", "nutstore", "onedrive", "owncloud",
    "pcloud drive", "pclouddrive", "proton drive", "protondrive", "resilio sync", "seadrive", "seafile",
    "spideroak hive", "sugarsync", "synologydrive", "tresorit", "yandex.disk",
})  # fmt: skip
"""Names of folders, in lower case. `cloudstorage` and `mobile documents` are those of macOS."""
MARKERS = (
    ".849c9593-d756-4e56-8d6e-42412f2a707b", ".csync_journal.db", ".dropbox", ".dropbox.cache", ".nextcloudsync.log",
    ".owncloudsync.log", ".seafile-data", ".stfolder", ".stversions", ".sync", ".tmp.drivedownload", ".tmp.driveupload",
)  # fmt: skip
"""Names of files and folders, in lower case, that such a program leaves in a folder that it copies."""
MARKER_STARTS = ("._sync_", ".sync_")  # databases of Nextcloud and ownCloud, with random letters in their names
_ACCOUNT = re.compile(r" - .*| \(.*\)|[-_ ][^-_ ]*@.*|-(?:personal|business)$")


def is_synced(folder: Path) -> bool:
    """Return True if a parent folder has the name or a marker file of a synchronising program.

    Args:
        folder: The folder; it need not exist.
    """
    return any(_has_name(parent.name) or _has_marker(parent) for parent in _parents(folder))


def _parents(folder: Path) -> Iterator[Path]:
    """Yield the folder and its parents, as written and with the links resolved."""
    for path in dict.fromkeys((folder.absolute(), folder.resolve())):
        yield path
        yield from path.parents


def _has_name(name: str) -> bool:
    lower = name.lower()
    return lower in SYNC_NAMES or _ACCOUNT.sub("", lower) in SYNC_NAMES


def _has_marker(folder: Path) -> bool:
    try:
        names = [path.name.lower() for path in folder.iterdir()]
    except OSError:
        return False  # missing, or not readable
    return any(name in MARKERS or name.startswith(MARKER_STARTS) for name in names)
