"""Replace this process by a program that the kernel ends with its parent: `launcher PID PROGRAM…`.

Invariants
- The program gets SIGTERM when the process PID has ended, even by SIGKILL (Linux, PR_SET_PDEATHSIG).
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Execute `words[1:]` as the child of process `words[0]`."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(words[0]):  # it ended before the kernel was asked
        sys.exit(1)
    os.execv(words[1], words[1:])  # noqa: S606  (no shell; the path comes from `supernode.program`)


if __name__ == "__main__":
    main(sys.argv[1:])
