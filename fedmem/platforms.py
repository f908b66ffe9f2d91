"""The operating systems that a vault can keep its promises on.

Invariants
- Where the locks of a vault do not exist, vault and command line are refused by name, before anything is loaded that
  would fail for another reason.

>>> require_supported("linux")
"""

import sys

from fedmem.errors import UsageError


def require_supported(platform: str = sys.platform) -> None:
    """Check that a vault can work on this operating system. See docs/stability.md.

    Args:
        platform: a name as in `sys.platform`.

    Raises:
        UsageError: Windows, which has neither flock nor the file modes that a vault relies on.
    """
    if platform in ("win32", "cygwin"):
        raise UsageError(
            "fedmem does not run on Windows: its vaults need file locks and file modes of POSIX. "
            "Use Linux, for example in the Windows Subsystem for Linux."
        )
