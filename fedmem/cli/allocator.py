"""Keep large memory buffers in the process between training steps.

By default, glibc returns every large buffer to the kernel when it is freed. The next buffer then costs a page fault
for each of its pages: 33,000 faults in a step of the tiny anchor, and none with this module. The cost is that freed
memory is not returned to the system until the process ends. How much time this saves depends on the cost of a page
fault on the machine (docs/design.md, §5).

Invariants
- Results do not depend on this setting.
- If the C library has no `mallopt`, nothing is changed.

>>> keep_buffers() in (True, False)
True
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
TRIM_BYTES = (1 << 31) - 1
MMAP_BYTES = 1 << 30


def keep_buffers() -> bool:
    """Raise two thresholds of glibc's malloc for this process: of trimming, and of memory maps.

    Returns:
        True if both were set.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    settings = ((M_TRIM_THRESHOLD, TRIM_BYTES), (M_MMAP_THRESHOLD, MMAP_BYTES))
    return [mallopt(name, value) for name, value in settings] == [1, 1]
