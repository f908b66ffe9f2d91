"""Derive the seeds for the parts of a training from one seed.

>>> derive_seed(7, "bank") == derive_seed(7, "bank"), derive_seed(7, "bank") == derive_seed(7, "anchor")
(True, False)
"""

from fedmem.storage.canonical import digest


def derive_seed(seed: int, *labels: object) -> int:
    """Return a 32-bit seed for one use, independent of the seeds for other labels.

    Args:
        seed: the seed of the training.
        labels: the use, by their text.
    """
    return int(digest([seed, *map(str, labels)])[:8], 16)
