"""Replace this process by a program that the kernel ends when its parent ends: `launcher PID PROGRAM…`.

Invariants
- The program gets SIGTERM when its parent, the process PID, has ended, even by SIGKILL (Linux, PR_SET_PDEATHSIG).
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Execute a program that ends with its parent. This call does not return.

    Args:
        arguments: the id of the parent process, the path of the program, and the program's arguments.

    Raises:
        SystemExit: the parent has ended already; the code is 1.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(arguments[0]):  # the parent ended before the call of prctl
        sys.exit(1)
    os.execv(arguments[1], arguments[1:])  # noqa: S606  (no shell; the path comes from `supernode.program`)


if __name__ == "__main__":
    main(sys.argv[1:])
