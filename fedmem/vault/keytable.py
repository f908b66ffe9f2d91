"""The sealed key table: all data keys of a subject in one file, under the epoch key.

Invariants
- The table is one container, replaced whole: old rows or new rows, never a mixture (I7).
- Rotation order (DESIGN §8): new epoch key pending -> table renamed -> old epoch key destroyed. The rename is the
  point of no return; `settle` finishes or undoes what a crash left, from the table's own epoch number.
- After a rotation no key that exists opens an older copy of the table (I4).
- The public header holds numbers and random ids: epoch, generation (one more per erasure), serial (one more per write).

The payload is a length, canonical JSON facts, then rows of 16-byte id and 32-byte key, sorted by id.
"""

import contextlib
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedmem.canonical import canonical_json
from fedmem.errors import FedmemError, VerificationFailed
from fedmem.vault import container
from fedmem.vault.fs import Files
from fedmem.vault.keys import Keystore

ID_BYTES, KEY_BYTES = 16, 32
ROW = ID_BYTES + KEY_BYTES
_LENGTH = struct.Struct(">I")


def encode(facts: Mapping[str, Any], keys: Mapping[str, bytes]) -> bytes:
    """The table's payload. Ids are 32 hex digits."""
    public = canonical_json(dict(facts))
    return _LENGTH.pack(len(public)) + public + b"".join(bytes.fromhex(i) + keys[i] for i in sorted(keys))


def decode(payload: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What `encode` was given. Raises VerificationFailed for anything else."""
    start = _LENGTH.size + (_LENGTH.unpack_from(payload)[0] if len(payload) >= _LENGTH.size else 0)
    if start > len(payload) or (len(payload) - start) % ROW:
        raise VerificationFailed("The key table has a damaged payload. Restore the vault from a backup.")
    facts: dict[str, Any] = json.loads(payload[_LENGTH.size : start])
    rows = (payload[i : i + ROW] for i in range(start, len(payload), ROW))
    return facts, {row[:ID_BYTES].hex(): row[ID_BYTES:] for row in rows}


def epoch_name(epoch: int) -> str:
    """The keystore's name of an epoch key."""
    return f"epoch-{epoch}"


class KeyTable:
    """The key table of one vault, read into memory.

    Attributes:
        facts: sealed facts of the vault (subject, digest of its public facts).
        keys: id (32 hex digits) -> 32-byte data key. Treat as read-only; change it through `rewrite`.
    """

    def __init__(self, files: Files, path: Path, keystore: Keystore, vault_id: str) -> None:
        self._files = files
        self._path = path
        self._keystore = keystore
        self._vault_id = vault_id
        self.facts: dict[str, Any] = {}
        self.keys: dict[str, bytes] = {}
        self.epoch = self.generation = self.serial = 0

    @classmethod
    def create(
        cls,
        files: Files,
        path: Path,
        keystore: Keystore,
        vault_id: str,
        facts: dict[str, Any],
        keys: Mapping[str, bytes] | None = None,
    ) -> "KeyTable":
        """A new table of epoch 1 on disk."""
        table = cls(files, path, keystore, vault_id)
        table.facts = facts
        table._write(dict(keys or {}), keystore.create(epoch_name(1)), (1, 0, 1))
        return table

    @classmethod
    def open(cls, files: Files, path: Path, keystore: Keystore, vault_id: str) -> "KeyTable":
        """Read the table. Raises KeystoreError where its epoch key is gone, VerificationFailed where it is damaged."""
        table = cls(files, path, keystore, vault_id)
        table.load()
        return table

    def peek(self) -> tuple[int, int, int]:
        """(epoch, generation, serial) on disk now, without any key."""
        size = container.PREFIX.size + container.MAX_HEADER
        head = self._files.read(self._path, limit=size)
        return _numbers(container.read_header(head, whole=False)[0])

    def load(self) -> None:
        """Read the table from disk again."""
        data = self._files.read(self._path)
        epoch = _numbers(container.read_header(data)[0])[0]
        header, payload = container.unseal(self._keystore.load(epoch_name(epoch)), data, identity=self._identity())
        self.facts, self.keys = decode(payload)
        self.epoch, self.generation, self.serial = _numbers(header)

    def settle(self) -> None:
        """Finish or undo a rotation that a crash cut: only the table's own epoch key stays."""
        if self.peek()[0] != self.epoch:  # never judge by memory which key the file needs
            self.load()
        neighbours = [epoch_name(self.epoch + step) for step in (-1, 1) if self.epoch + step > 0]
        left = [name for name in neighbours if self._keystore.exists(name)]
        if left:
            self._files.sync_folder(self._path.parent)  # the rename must be durable before the old key goes
        for name in left:
            self._keystore.destroy(name)

    def rewrite(
        self,
        *,
        add: Mapping[str, bytes] | None = None,
        without: Iterable[str] = (),
        rotate: bool = False,
        erasure: bool = False,
    ) -> None:
        """Write the table with rows added and removed.

        Args:
            add: new rows.
            without: ids whose rows go; removing them for good needs `rotate`.
            rotate: seal under a new epoch key and destroy the old one.
            erasure: count one more generation, so that readers of the old one stop.

        Raises:
            StorageError, KeystoreError. The object then again equals what is on disk.
        """
        gone = set(without)
        rows = {i: key for i, key in self.keys.items() if i not in gone} | dict(add or {})
        numbers = (self.epoch + rotate, self.generation + erasure, self.serial + 1)
        try:
            self.settle()
            name = epoch_name(numbers[0])
            key = self._keystore.create(name) if rotate else self._keystore.load(name)
            self._write(rows, key, numbers)
            self.settle()
        except FedmemError:
            with contextlib.suppress(FedmemError):
                self.load()
            raise

    def _write(self, rows: dict[str, bytes], key: bytes, numbers: tuple[int, int, int]) -> None:
        header = dict(zip(("epoch", "generation", "serial"), numbers, strict=True))
        sealed = container.seal(
            key,
            {"kind": "keytable", "vault": self._vault_id, **header},
            encode(self.facts, rows),
            identity=self._identity(),
        )
        self._files.replace(self._path, sealed)
        self.keys = rows
        self.epoch, self.generation, self.serial = numbers

    def _identity(self) -> str:
        return f"keytable/{self._vault_id}"


def _numbers(header: Mapping[str, Any]) -> tuple[int, int, int]:
    numbers = tuple(header.get(name) for name in ("epoch", "generation", "serial"))
    if header.get("kind") != "keytable" or not all(type(n) is int and n >= 0 for n in numbers):
        raise container.ContainerCorrupt("The key table's header is damaged. Restore the vault from a backup.")
    return numbers  # type: ignore[return-value]
