"""Where the vault of a subject lies when no folder is named.

Invariants
- The folder's name does not spell the subject (docs/design.md, §4 I8), and any subject gives a valid name.

>>> len(vault_root("ana@example.org").name), vault_root("ana") == vault_root("ana")
(32, True)
"""

import hashlib
from pathlib import Path

from fedmem.errors import UsageError
from fedmem.paths import vaults_dir


def vault_root(subject: str) -> Path:
    """Folder of `subject`'s vault under `vaults_dir()`. Raises UsageError where the subject is empty."""
    if not subject:
        raise UsageError("A vault belongs to a subject; the subject's name is empty.")
    return vaults_dir() / hashlib.sha256(b"fedmem vault of\0" + subject.encode()).hexdigest()[:32]
