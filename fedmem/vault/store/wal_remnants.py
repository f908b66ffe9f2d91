"""Detection of moved cells in SQLite's log: copies of such cells may remain in unused space of a page.

Invariants
- `secure_delete` zeroes the space that a deletion frees. A cell that balancing moves to another page stays in the gap
  of the old page until it is overwritten. Such a page has more in its gap than pointers to deleted cells.
- Only the pages in the log are examined: the cost depends on the change, not on the size of the database.
- A false alarm costs a rebuild of the file. Pages that are not table leaves hold ids alone.

Source: the SQLite file format, sections 1.6 (b-tree pages) and 4.2 (log frames).

    if has_moved_cells(log): database.vacuum()
"""

import struct
from collections.abc import Iterator

WAL_HEADER, FRAME_HEADER, TABLE_LEAF = 32, 24, 0x0D
PAIRS = 4
FIRST_PAGE = 100  # bytes of the file header before the first page's own


def has_moved_cells(log: bytes) -> bool:
    """Return True if a table leaf in the write-ahead log holds more than its cells. An empty log gives False.

    A remaining pointer is an offset below the page size, so its first byte is small. A freed cell leaves at most four
    bytes.
    Of the twelve pairs in 24 bytes of ciphertext, fewer than `PAIRS` look otherwise once in 10^8.

    Args:
        log: the bytes of the file `vault.db-wal`.
    """
    return any(_foreign(_gap(page, start), len(page)) >= PAIRS for page, start in _pages(log))


def _foreign(gap: bytes, size: int) -> int:
    """Count the pairs of bytes that cannot be a pointer into a page of `size` bytes."""
    return sum(byte > size >> 8 for byte in gap.rstrip(b"\0")[::2])


def _pages(log: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each page of the log, and the offset of its header."""
    if len(log) < WAL_HEADER:
        return
    (size,) = struct.unpack_from(">I", log, 8)
    for offset in range(WAL_HEADER, len(log) - FRAME_HEADER - size + 1, FRAME_HEADER + size):
        (number,) = struct.unpack_from(">I", log, offset)
        page = log[offset + FRAME_HEADER : offset + FRAME_HEADER + size]
        yield page, FIRST_PAGE if number == 1 else 0


def _gap(page: bytes, start: int) -> bytes:
    """Return the bytes between the cell pointers and the first cell of a table leaf; empty for other pages."""
    kind, _, cells, content, _ = struct.unpack_from(">BHHHB", page, start)
    return page[start + 8 + 2 * cells : content or 65536] if kind == TABLE_LEAF else b""
