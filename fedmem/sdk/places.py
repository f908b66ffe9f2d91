"""The default folder of a subject's vault.

Invariants
- The folder's name does not contain the subject's name (docs/design.md, §4 I8).
- Every subject that is not empty gives a valid folder name.

>>> len(vault_root("ana@example.org").name), vault_root("ana") == vault_root("ana")
(32, True)
"""

import hashlib
from pathlib import Path

from fedmem.errors import UsageError
from fedmem.paths import vaults_dir

__all__ = ["vault_root"]


def vault_root(subject: str) -> Path:
    """Return the default folder of a subject's vault, below `vaults_dir()`.

    Args:
        subject: Name of the subject, not empty.

    Raises:
        UsageError: The subject is empty.
    """
    if not subject:
        raise UsageError("A vault belongs to a subject; the subject's name is empty.")
    return vaults_dir() / hashlib.sha256(b"fedmem vault of\0" + subject.encode()).hexdigest()[:32]
