"""The Merkle tree hash of RFC 6962, section 2.1, over SHA-256.

Invariants
- A leaf is hashed after a byte 0x00 and an inner node after 0x01, so no node can be taken for a leaf.
- A node without a neighbour moves up unchanged. This gives the tree of the RFC, which splits at powers of two.

>>> root([]) == hashlib.sha256(b"").digest()
True
>>> root([b"one"]) == hashlib.sha256(b"\\0one").digest()
True
"""

import hashlib
from collections.abc import Iterable


def root(leaves: Iterable[bytes]) -> bytes:
    """Return the root, 32 bytes, of the tree over `leaves` in their order.

    Guarantees
        Two lists with one root are equal, as long as nobody finds a collision of SHA-256.

        | leaves | root |
        |---|---|
        | none | SHA-256 of no bytes |
        | one | SHA-256 of 0x00 and the leaf |
        | a changed, missing, added or moved leaf | another root |

    Args:
        leaves: the content of each leaf, of any length.
    """
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    if not level:
        return hashlib.sha256(b"").digest()
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        unpaired = level[-1:] if len(level) % 2 else []
        level = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs] + unpaired
    return level[0]
