"""The operating systems on which a vault can work.

Invariants
- An operating system without the file locks of a vault is refused by name. The check runs before other imports, so
  that no unrelated error comes first.

>>> require_supported("linux")
"""

import sys

from fedmem.errors import UsageError


def require_supported(platform: str = sys.platform) -> None:
    """Check that a vault can work on this operating system. See docs/stability.md.

    Args:
        platform: Name of the operating system, as in `sys.platform`.

    Raises:
        UsageError: The operating system is Windows. It has neither flock nor the file modes that a vault needs.
    """
    if platform in ("win32", "cygwin"):
        raise UsageError(
            "fedmem does not run on Windows: its vaults need file locks and file modes of POSIX. "
            "Use Linux, for example in the Windows Subsystem for Linux."
        )
