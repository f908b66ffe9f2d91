"""Look for private bytes in the memory of a process: of another one, or of this one."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

WORD = 8  # bytes that are looked for at once
PIECE = 1 << 24


def writable_memory(process: int) -> Iterator[np.ndarray]:
    """Yield the writable memory of a process as arrays of 64-bit words. Raises OSError where that is not permitted."""
    handle = os.open(f"/proc/{process}/mem", os.O_RDONLY)
    try:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            addresses, mode = line.split()[:2]
            start, end = (int(address, 16) for address in addresses.split("-"))
            if mode.startswith("rw"):
                yield from _pieces(handle, start, end)
    finally:
        os.close(handle)


def _pieces(handle: int, start: int, end: int) -> Iterator[np.ndarray]:
    while start < end:
        try:
            data = os.pread(handle, min(PIECE, end - start), start)
        except OSError:  # a mapping without memory behind it
            return
        if not data:
            return
        yield np.frombuffer(data[: len(data) // WORD * WORD], dtype="<u8")
        start += len(data)


def words_left(process: int, needles: Mapping[str, bytes]) -> dict[str, int]:
    """Return for each needle how many different words of it are in the writable memory of a process.

    A word is 8 successive bytes of a needle, at any offset. The memory is read in aligned words, so a copy of n bytes
    at any address is found by at least n // 8 - 1 of them.

    Args:
        needles: random bytes by name. Fixed texts would be found in other places.
    """
    words = {name: np.unique(_words(needle)) for name, needle in needles.items()}
    every_word = np.unique(np.concatenate(list(words.values())))
    parts = [(every_word >> shift & 0xFFFF).astype(np.uint16) for shift in (0, 16)]
    may_match = [np.isin(np.arange(1 << 16, dtype=np.uint16), part) for part in parts]
    hits = [np.empty(0, dtype="<u8")]
    for memory in writable_memory(process):
        shorts = memory.view("<u2").reshape(-1, 4)  # most words are left out by their first four bytes
        candidates = memory[may_match[0][shorts[:, 0]] & may_match[1][shorts[:, 1]] & (memory != 0)]
        at = np.searchsorted(every_word, candidates).clip(max=len(every_word) - 1)
        hits.append(candidates[every_word[at] == candidates])
    found = np.concatenate(hits)
    return {name: int(np.isin(needle, found).sum()) for name, needle in words.items()}


def _words(needle: bytes) -> np.ndarray:
    return np.concatenate([np.frombuffer(needle[i : i + (len(needle) - i) // WORD * WORD], "<u8") for i in range(WORD)])
