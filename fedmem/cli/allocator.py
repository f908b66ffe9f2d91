"""Keep large buffers in the process between training steps.

glibc gives every large buffer back to the kernel when it is freed and pays a fault for each page of the next one
(33,000 faults in a step of the tiny anchor, none with this). Raising both thresholds stops that, at the price that
freed memory is reused, not returned, until the process ends. What that is worth in time depends on how dear a first
touch is on the machine (docs/design.md, §5); where it is cheap, nothing is gained.

Invariants
- Results do not depend on it; where the C library has no `mallopt` nothing happens.

>>> keep_buffers() in (True, False)
True
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
TRIM_BYTES = (1 << 31) - 1
MMAP_BYTES = 1 << 30


def keep_buffers() -> bool:
    """Raise both thresholds of glibc's malloc for this process. True where that worked."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    settings = ((M_TRIM_THRESHOLD, TRIM_BYTES), (M_MMAP_THRESHOLD, MMAP_BYTES))
    return [mallopt(name, value) for name, value in settings] == [1, 1]
