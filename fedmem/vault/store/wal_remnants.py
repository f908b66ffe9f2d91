"""Does SQLite's log show that cells were moved, so that copies of them may lie in unused space of a page?

Invariants
- `secure_delete` zeroes what a deletion frees; what balancing moves to another page stays in the gap of the old one
  until it is written over. A page with more in its gap than pointers to cells that were deleted is such a page.
- Only the pages that the log holds are looked at: the cost is that of what was changed, whatever the database holds.
- A false alarm costs a rebuild of the file; pages that are not table leaves hold ids alone.

Source: the SQLite file format, sections 1.6 (b-tree pages) and 4.2 (log frames).

    if moved(log): database.vacuum()
"""

import struct
from collections.abc import Iterator

WAL_HEADER, FRAME_HEADER, TABLE_LEAF = 32, 24, 0x0D
PAIRS = 4
FIRST_PAGE = 100  # bytes of the file header before the first page's own


def moved(log: bytes) -> bool:
    """Whether a table leaf in the write-ahead log `log` holds more than its cells. False for an empty log.

    A left pointer is an offset below the page size, so its first byte is small; a freed cell leaves up to four bytes.
    Of the twelve pairs in 24 bytes of ciphertext fewer than `PAIRS` look otherwise once in 10^8.
    """
    return any(_foreign(_gap(page, start), len(page)) >= PAIRS for page, start in _pages(log))


def _foreign(gap: bytes, size: int) -> int:
    """Pairs of bytes that cannot be a pointer into a page of `size` bytes."""
    return sum(byte > size >> 8 for byte in gap.rstrip(b"\0")[::2])


def _pages(log: bytes) -> Iterator[tuple[bytes, int]]:
    """Each page of the log, and where its header starts."""
    if len(log) < WAL_HEADER:
        return
    (size,) = struct.unpack_from(">I", log, 8)
    for at in range(WAL_HEADER, len(log) - FRAME_HEADER - size + 1, FRAME_HEADER + size):
        (number,) = struct.unpack_from(">I", log, at)
        page = log[at + FRAME_HEADER : at + FRAME_HEADER + size]
        yield page, FIRST_PAGE if number == 1 else 0


def _gap(page: bytes, start: int) -> bytes:
    """The bytes between the cell pointers and the first cell of a table leaf; nothing for other pages."""
    kind, _, cells, content, _ = struct.unpack_from(">BHHHB", page, start)
    return page[start + 8 + 2 * cells : content or 65536] if kind == TABLE_LEAF else b""
