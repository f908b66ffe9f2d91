"""Seeds of the parts of a training.

>>> derived(7, "bank") == derived(7, "bank"), derived(7, "bank") == derived(7, "anchor")
(True, False)
"""

from fedmem.storage.canonical import digest


def derived(seed: int, *labels: object) -> int:
    """Return a 32-bit seed for one use, independent of those for other labels."""
    return int(digest([seed, *map(str, labels)])[:8], 16)
