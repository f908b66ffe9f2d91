"""An append-only file of entries, each chained to the one before it by SHA-256.

Invariants
- The digest of an entry covers its number, its content and the previous digest. So a change, a move or a removal
  of an entry before the last one is detected. To detect removed entries at the end, a caller stores `head` elsewhere.
- An entry is durable before `append` returns, except with `durable=False`.
- A crash can cut the last line, which then has no line end and was never acknowledged. It is not read, and the next
  append overwrites it.
- Bytes that another process has appended are read and verified before the next append.

The content of an entry is bytes. `HEX` writes it in hexadecimal, `JSON` as the JSON value that it encodes.

>>> chain("", 0, b"content") == chain("", 0, b"content"), chain("", 0, b"content") == chain("", 1, b"content")
(True, False)
>>> import pathlib, tempfile
>>> log = HashChainedLog(Files(), pathlib.Path(tempfile.mkdtemp(), "log"), HEX)
>>> log.append(b"first").number, [entry.content for entry in log.read()]
(0, [b'first'])
"""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedmem.errors import VerificationFailed
from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import Files


class LineFormat(NamedTuple):
    """The JSON field of a line that holds the content, with the functions that encode and decode it."""

    field: str
    encode: Callable[[bytes], Any]
    decode: Callable[[Any], bytes]


HEX = LineFormat("sealed", bytes.hex, bytes.fromhex)
JSON = LineFormat("body", json.loads, canonical_json)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of the log.

    Attributes:
        number: 0 for the first entry, then one more for each entry.
        digest: 64 hex digits; covers all entries up to this one.
    """

    number: int
    content: bytes
    digest: str


def chain(previous: str, number: int, content: bytes) -> str:
    """Return the digest of an entry, which covers all entries before it.

    Args:
        previous: digest of the entry before, 64 hex digits; "" for the first entry.
        number: number of the entry, from 0.
        content: its content.

    Returns:
        64 hex digits.
    """
    return hashlib.sha256(canonical_json([previous, number, hashlib.sha256(content).hexdigest()])).hexdigest()


class HashChainedLog:
    """A hash-chained log in one file, which the first append creates.

    Args:
        files: the file layer.
        path: the file of the log; it may be missing.
        line_format: HEX or JSON.
    """

    def __init__(self, files: Files, path: Path, line_format: LineFormat) -> None:
        self._files, self._path, self._format = files, path, line_format
        self._count, self._head, self._size = 0, "", 0

    @property
    def head(self) -> str:
        """The digest of the last entry that this object read or appended; "" if there is none."""
        return self._head

    @property
    def count(self) -> int:
        """The number of entries that this object read or appended."""
        return self._count

    @property
    def is_current(self) -> bool:
        """True if the file still has the size that this object read or wrote last."""
        return self._size_on_disk() == self._size

    def read(self) -> list[LogEntry]:
        """Return all entries, oldest first.

        Raises:
            VerificationFailed: an entry was changed. StorageError: the file cannot be read.
        """
        entries, self._size = parse(self._bytes(), self._format, self._path.name)
        self._count, self._head = len(entries), entries[-1].digest if entries else ""
        return entries

    def append(self, content: bytes, *, durable: bool = True) -> LogEntry:
        """Append one entry and return it; after an error nothing was appended.

        Args:
            durable: if False, a crash may lose the entry until the next durable append.

        Raises:
            VerificationFailed: an entry that another process appended does not verify.
            StorageError: the file cannot be read or written.
        """
        if not self.is_current:
            self.read()
        entry = LogEntry(self._count, content, chain(self._head, self._count, content))
        line = _line(entry, self._format)
        self._files.append(self._path, self._size, line, durable=durable)
        self._count, self._head, self._size = entry.number + 1, entry.digest, self._size + len(line)
        return entry

    def _bytes(self) -> bytes:
        return self._files.read(self._path) if self._path.exists() else b""

    def _size_on_disk(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


def parse(data: bytes, line_format: LineFormat, name: str) -> tuple[list[LogEntry], int]:
    """Return the complete entries of a log, and the number of bytes that they take.

    Args:
        data: the content of the file.
        name: the file's name, for the message of an error.

    Raises:
        VerificationFailed: the chain of digests breaks; the message names the entry and the file.
    """
    entries, size, previous = list[LogEntry](), 0, ""
    for text in data.split(b"\n")[:-1]:  # bytes after the last line end were cut by a crash
        entry = _entry(text + b"\n", len(entries), line_format)
        if entry is None or not hmac.compare_digest(entry.digest, chain(previous, entry.number, entry.content)):
            raise VerificationFailed(
                f"{name} does not verify at entry {len(entries)}: it was changed. Restore the file from a backup."
            )
        entries.append(entry)
        size, previous = size + len(text) + 1, entry.digest
    return entries, size


def _line(entry: LogEntry, line_format: LineFormat) -> bytes:
    return canonical_json({"digest": entry.digest, line_format.field: line_format.encode(entry.content)}) + b"\n"


def _entry(line: bytes, number: int, line_format: LineFormat) -> LogEntry | None:
    """Return the entry, or None if these bytes are not exactly the line that `_line` writes."""
    try:
        fields = json.loads(line)
        entry = LogEntry(number, line_format.decode(fields[line_format.field]), str(fields["digest"]))
        return entry if entry.digest.isascii() and line == _line(entry, line_format) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
