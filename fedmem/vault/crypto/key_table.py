"""The sealed key table: all data keys of a subject in one file, under the epoch key.

Invariants
- The table is one container, replaced whole: old rows or new rows, never a mixture (I7).
- Rotation order (docs/design.md, §8): new epoch key pending -> table renamed -> old epoch key destroyed. The rename is
  the point of no return; `settle` finishes or undoes what a crash left, from the table's own epoch number.
- After a rotation no key of the keystore opens an older copy of the table (I4); after an erasure no backup either.
- The keystore notes the newest serial, after the table is durable and before the next write: the note is never ahead of
  the disk and at most one behind it, so that a crash locks nobody out and an older table put back is noticed.
- The public header holds numbers and random ids: epoch, generation (one more per erasure), serial (one more per write),
  and the epoch key sealed to each recovery kit. An erasure leaves the kits and the key of the backups out.

The payload is a length, canonical JSON facts, then rows of 16-byte id and 32-byte key, sorted by id.
"""

import contextlib
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedmem.errors import FedmemError, VerificationFailed
from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import Files
from fedmem.vault.crypto import container
from fedmem.vault.crypto import hpke as recipients
from fedmem.vault.crypto.keystore import Keystore

ID_BYTES, KEY_BYTES = 16, 32
ROW = ID_BYTES + KEY_BYTES
_LENGTH = struct.Struct(">I")
_NOTE = struct.Struct(">QQQ")
NOTE = "table"
RETIRED = ("kits", "backup")  # facts that an erasure leaves out
_NUMBERS = ("epoch", "generation", "serial")
Numbers = tuple[int, int, int]


class RolledBack(VerificationFailed):
    """An older version of the table was put back."""


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


def backup_name(generation: int) -> str:
    """The keystore's name of the key that opens the backups of a generation."""
    return f"backup-{generation}"


def seal(key: bytes, vault_id: str, numbers: Numbers, facts: Mapping[str, Any], rows: Mapping[str, bytes]) -> bytes:
    """A table sealed under `key`, which is also sealed to each recovery kit that `facts` name."""
    header = {"kind": "keytable", "vault": vault_id, **dict(zip(_NUMBERS, numbers, strict=True))}
    kits = facts.get("kits", {})
    if kits:
        header["kits"] = {kit: recipients.seal_to(kits[kit], key, identity=f"{vault_id}/{kit}") for kit in kits}
    return container.seal(key, header, encode(facts, rows), identity=identity(vault_id))


def unseal(key: bytes, vault_id: str, data: bytes) -> tuple[Numbers, dict[str, Any], dict[str, bytes]]:
    """(numbers, facts, rows) of a sealed table. Raises VerificationFailed, VersionMismatch."""
    header, payload = container.unseal(key, data, identity=identity(vault_id))
    return (numbers_of(header), *decode(payload))


def identity(vault_id: str) -> str:
    """What a table is bound to."""
    return f"keytable/{vault_id}"


def noted(keystore: Keystore) -> Numbers:
    """The newest (epoch, generation, serial) that a keystore knows of; zeros where it knows none."""
    value = keystore.noted(NOTE) or b""
    return _NOTE.unpack(value) if len(value) == _NOTE.size else (0, 0, 0)


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

    @property
    def keystore(self) -> Keystore:
        """Where the table's epoch key lies."""
        return self._keystore

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
        table._write(dict(keys or {}), keystore.create(epoch_name(1)), (1, 0, 1), facts)
        table._note()
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
        return numbers_of(container.read_header(head, whole=False)[0])

    def load(self) -> None:
        """Read the table from disk again. Raises RolledBack where the keystore knows of a newer one."""
        newest = noted(self._keystore)  # before the file: a writer may go on meanwhile
        numbers, facts, keys = self._read()
        if numbers[2] < newest[2]:
            raise RolledBack(
                "An older version of the key table was put back. Put the newest back, or restore the whole vault with "
                "`fedmem backup restore`, table and database from one backup."
            )
        self.facts, self.keys = facts, keys
        self.epoch, self.generation, self.serial = numbers

    def load_any_age(self) -> None:
        """Read the table, also one that the keystore knows a newer one of: to look at it, never to go on from it."""
        (self.epoch, self.generation, self.serial), self.facts, self.keys = self._read()

    def _read(self) -> tuple[Numbers, dict[str, Any], dict[str, bytes]]:
        data = self._files.read(self._path)
        epoch = numbers_of(container.read_header(data)[0])[0]
        return unseal(self._keystore.load(epoch_name(epoch)), self._vault_id, data)

    def settle(self) -> None:
        """Finish or undo a write that a crash cut: only the table's own keys stay, and its serial is noted."""
        self._destroy_old()
        self._note()

    def _destroy_old(self) -> None:
        if self.peek()[0] != self.epoch:  # never judge by memory which key the file needs
            self.load()
        old = [epoch_name(self.epoch + step) for step in (-1, 1) if self.epoch + step > 0]
        left = [name for name in [*old, *self._old_backups()] if self._keystore.exists(name)]
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
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the table with rows added and removed.

        Args:
            add: new rows.
            without: ids whose rows go; removing them for good needs `rotate`.
            rotate: seal under a new epoch key and destroy the old one.
            erasure: count one more generation, so that readers of the old one stop.
            facts: the sealed facts from now on; None leaves them.

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
            sealed = self.facts if facts is None else facts
            self._write(rows, key, numbers, {f: sealed[f] for f in sealed if not (erasure and f in RETIRED)})
            self._destroy_old()
        except FedmemError:
            with contextlib.suppress(FedmemError):
                self.load()
            raise
        with contextlib.suppress(FedmemError):  # what cannot be noted now is noted before the next write
            self._note()

    def move(self, keystore: Keystore) -> None:
        """Go on with another keystore, which holds the table's keys already."""
        self._keystore = keystore

    def _write(self, rows: dict[str, bytes], key: bytes, numbers: Numbers, facts: dict[str, Any]) -> None:
        self._files.replace(self._path, seal(key, self._vault_id, numbers, facts, rows))
        self.facts, self.keys = facts, rows
        self.epoch, self.generation, self.serial = numbers

    def _note(self) -> None:
        """Note the serial of a table that is durable; a note never goes back."""
        if noted(self._keystore)[2] < self.serial:
            self._keystore.note(NOTE, _NOTE.pack(self.epoch, self.generation, self.serial))

    def _old_backups(self) -> list[str]:
        return [backup_name(self.generation - 1)] if self.generation else []


def numbers_of(header: Mapping[str, Any]) -> Numbers:
    """(epoch, generation, serial) of a table's public header. Raises ContainerCorrupt."""
    numbers = tuple(header.get(name) for name in _NUMBERS)
    if header.get("kind") != "keytable" or not all(type(n) is int and n >= 0 for n in numbers):
        raise container.ContainerCorrupt("The key table's header is damaged. Restore the vault from a backup.")
    return numbers  # type: ignore[return-value]
