"""The sealed key table: all data keys of a subject, under the epoch key.

Invariants
- The table is one container and is replaced as one file: a reader sees the old rows or the new rows (I7).
- New items are appended as sealed entries to a log beside it (`table_log`), so adding one does not write all. After
  `LOG_LIMIT` entries, and at each removal or rotation, the table is written anew and the log is removed.
- Order of a rotation (docs/design.md, §8): create the new epoch key, rename the new table into place, destroy the old
  epoch key. The rename is the point of no return. After a crash, `settle` reads the epoch number of the table on disk
  and destroys the key that is not its own.
- After a rotation no key in the keystore opens an older copy of the table (I4). After an erasure no key in the keystore
  opens an older backup.
- The keystore notes the newest serial after the table is durable and before the next write. So the note is never ahead
  of the disk, and at most one behind it. A crash therefore locks no user out, and an older table is detected.
- An appended entry is not noted here: the note of the change that it belongs to holds its serial (`acknowledgement`).
- An erasure removes the kits and the key of the backups. `sealed_table` has the format of the file.
"""

import contextlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedmem.errors import FedmemError, KeystoreError, VerificationFailed
from fedmem.storage.files import Files
from fedmem.storage.private_memory import overwrite_values
from fedmem.vault.crypto import container, table_log
from fedmem.vault.crypto.keystore import Keystore
from fedmem.vault.crypto.sealed_table import (
    Numbers,
    backup_name,
    decode,
    encode,
    epoch_name,
    numbers_of,
    seal,
    unseal,
)
from fedmem.vault.crypto.table_log import LogPosition

_NOTE = struct.Struct(">QQQ")
NOTE = "table"
CHANGE, CHANGE_NOTE = "database", struct.Struct(">QQ")
"""The name and format of the note of the last acknowledged change: serial of the table, revision of the database."""
LOG = "table.log"
LOG_LIMIT = 256  # entries; opening a vault reads at most these
_TRIES = 20  # a writer may replace the table while it is read
RETIRED = ("kits", "backup")  # facts that an erasure removes


class RolledBack(VerificationFailed):
    """An error: the table, or another part of the vault, is an older version than the keystore has noted."""


def noted_numbers(keystore: Keystore) -> Numbers:
    """Return the newest (epoch, generation, serial) that a keystore has noted.

    Args:
        keystore: the keystore of the vault; a bare one is enough.

    Returns:
        Three numbers; zeros if there is no valid note.
    """
    value = keystore.noted(NOTE) or b""
    return _NOTE.unpack(value) if len(value) == _NOTE.size else (0, 0, 0)


def noted_serial(keystore: Keystore) -> int:
    """Return the newest serial that a keystore has noted, for the table or for an acknowledged change.

    Args:
        keystore: the keystore of the vault; a bare one is enough.

    Returns:
        The serial; 0 if there is no valid note.
    """
    change = keystore.noted(CHANGE) or b""
    acknowledged = int(CHANGE_NOTE.unpack(change)[0]) if len(change) == CHANGE_NOTE.size else 0
    return max(noted_numbers(keystore)[2], acknowledged)


class KeyTable:
    """The key table of one vault, read into memory.

    Attributes:
        facts: sealed facts of the vault, such as the subject and the digest of the header.
        keys: id (32 hex digits) -> 32-byte data key. Read-only: `rewrite` changes it.
        epoch, generation: numbers of the table in memory; 0 before the table is read.
    """

    def __init__(self, files: Files, path: Path, keystore: Keystore, vault_id: str) -> None:
        self._files = files
        self._path = path
        self._keystore = keystore
        self._vault_id = vault_id
        self.facts: dict[str, Any] = {}
        self.keys: dict[str, bytes] = {}
        self.epoch = self.generation = 0
        self._start = self._position = table_log.start(b"", 0)
        self._entry_key = b""

    @property
    def keystore(self) -> Keystore:
        """The keystore that holds the epoch key of this table."""
        return self._keystore

    @property
    def serial(self) -> int:
        """The number of writes so far, appended entries included; 0 before the table is read."""
        return self._position.serial

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
        """Write a new table of epoch 1, and return it.

        Args:
            files: the file layer.
            path: the table's file.
            keystore: gets the key of epoch 1.
            vault_id: 32 hex digits.
            facts: sealed facts that JSON can represent.
            keys: id (32 hex digits) -> 32-byte data key; None for no rows.

        Raises:
            StorageError, KeystoreError: the table or its epoch key cannot be written.
        """
        table = cls(files, path, keystore, vault_id)
        table._write(dict(keys or {}), keystore.create(epoch_name(1)), (1, 0, 1), facts)
        table._note()
        return table

    @classmethod
    def open(cls, files: Files, path: Path, keystore: Keystore, vault_id: str) -> "KeyTable":
        """Read the table from disk and return it.

        Args:
            files: the file layer.
            path: the table's file.
            keystore: holds the epoch key.
            vault_id: 32 hex digits.

        Raises:
            KeystoreError: the keystore lacks its epoch key. RolledBack: the keystore has noted a newer table.
            VerificationFailed: it is damaged. VersionMismatch: another format. NothingMatched: it is missing.
        """
        table = cls(files, path, keystore, vault_id)
        table.load()
        return table

    def numbers_on_disk(self) -> Numbers:
        """Return (epoch, generation, serial) of the table file, without appended entries. This needs no key."""
        size = container.PREFIX.size + container.MAX_HEADER
        head = self._files.read(self._path, limit=size)
        return numbers_of(container.read_header(head, whole=False)[0])

    def load(self) -> None:
        """Read the table from disk again. Raises as `open`."""
        newest = noted_serial(self._keystore)  # read before the file: a writer may write meanwhile
        previous = vars(self).copy()
        self._read()
        if self.serial < newest:
            vars(self).update(previous)
            raise RolledBack(
                "An older version of the key table was put back. Put the newest back, or restore the whole vault with "
                "`fedmem backup restore`, table and database from one backup."
            )

    def _replace_keys(self, keys: dict[str, bytes]) -> None:
        old_keys, self.keys = self.keys, keys
        overwrite_values(old_keys)

    def load_any_age(self) -> None:
        """Read the table even if the keystore has noted a newer one. Use it for inspection only, and never write it."""
        self._read()

    def catch_up(self) -> None:
        """Read what other processes wrote since this object read or wrote the table. Raises as `open`."""
        size = self._log.stat().st_size if self._log.exists() else 0
        if self.numbers_on_disk() != (self.epoch, self.generation, self._start.serial) or size < self._position.offset:
            self.load()
        elif size > self._position.offset:
            self._read_entries(self._files.read(self._log))

    def forget(self) -> None:
        """Forget all keys and topics, and overwrite keys that nothing else refers to. `load` reads them again."""
        self._replace_keys({})
        self._entry_key = b""
        self.facts = self.facts | {"topics": {}, "retention": {}}

    @property
    def _log(self) -> Path:
        return self._path.with_name(LOG)

    def _read(self) -> None:
        for attempt in range(_TRIES):
            data = self._files.read(self._path)
            numbers = numbers_of(container.read_header(data)[0])
            try:
                epoch_key = self._keystore.load(epoch_name(numbers[0]))
            except KeystoreError:
                if self.numbers_on_disk() == numbers or attempt == _TRIES - 1:
                    raise
                continue  # a writer has begun a new epoch in the meantime
            _, facts, keys = unseal(epoch_key, self._vault_id, data)
            start = table_log.start(data, numbers[2])
            log = self._files.read(self._log) if self._log.exists() else b""
            # Without its entries the table is whole only if no writer replaced it in the meantime.
            if table_log.continues(log, start) or self.numbers_on_disk() == numbers:
                break
        self._set(numbers, facts, keys, start, epoch_key)
        self._read_entries(log)

    def _read_entries(self, log: bytes) -> None:
        """Add the entries of the log that come after the present position. A torn entry is left out."""
        rest = log[self._position.offset :]
        entries = table_log.read_entries(self._entry_key, self._vault_id, self._position, rest)
        for payload in entries.payloads:
            facts, keys = decode(payload)
            self._add(keys, facts["topics"])
        self._position = entries.position

    def _add(self, keys: Mapping[str, bytes], topics: Mapping[str, list[str]]) -> None:
        self.keys.update(keys)
        for topic, ids in topics.items():
            self.facts["topics"].setdefault(topic, []).extend(ids)

    def _set(
        self, numbers: Numbers, facts: dict[str, Any], keys: dict[str, bytes], start: LogPosition, epoch_key: bytes
    ) -> None:
        if "topics" in facts:  # a copy, since `_add` changes it in place
            facts = facts | {"topics": {topic: list(ids) for topic, ids in facts["topics"].items()}}
        self._replace_keys(keys)
        self.facts = facts
        self.epoch, self.generation, _ = numbers
        self._start = self._position = start
        self._entry_key = table_log.entry_key(epoch_key, start)

    def settle(self) -> None:
        """Complete or undo a write that a crash interrupted.

        Afterwards the older and the pending epoch key are destroyed, the log of an earlier table is removed, and the
        serial of the table is noted.

        Raises:
            StorageError, KeystoreError, VerificationFailed.
        """
        self.catch_up()  # the table on disk decides which key is needed, not the one in memory
        self._drop_old_log()
        self._destroy_old()
        self._note()

    def append(self, keys: Mapping[str, bytes], topics: Mapping[str, list[str]]) -> None:
        """Append the keys of new items to the table, durably.

        Args:
            keys: id (32 hex digits) -> 32-byte data key, for new ids.
            topics: topic -> the ids of `keys` that belong to it.

        Raises:
            StorageError: the table is as it was. On a failing disk, an entry that nothing acknowledged may follow it.
        """
        if self._position.serial - self._start.serial >= LOG_LIMIT:
            index = {topic: list(ids) for topic, ids in self.facts["topics"].items()}
            for topic, ids in topics.items():
                index.setdefault(topic, []).extend(ids)
            self.rewrite(add=keys, facts={**self.facts, "topics": index})
            return
        payload = encode({"topics": dict(topics)}, keys)
        data, position = table_log.seal_entry(self._entry_key, self._vault_id, self._position, payload)
        try:
            self._files.append(self._log, self._position.offset, data)
        except FedmemError:
            with contextlib.suppress(FedmemError):
                self._files.truncate(self._log, self._position.offset)
            raise
        self._add(keys, topics)
        self._position = position

    def _drop_old_log(self) -> None:
        """Remove a log that continues an earlier table; a crash left it."""
        if self._log.exists() and not table_log.continues(
            self._files.read(self._log, limit=table_log.HEADER_BYTES), self._start
        ):
            self._files.unlink(self._log)
            self._files.sync_folder(self._path.parent)

    def _destroy_old(self) -> None:
        other_epochs = [epoch_name(self.epoch + step) for step in (-1, 1) if self.epoch + step > 0]
        old_keys = [name for name in [*other_epochs, *self._old_backups()] if self._keystore.exists(name)]
        if old_keys:
            self._files.sync_folder(self._path.parent)  # the rename must be durable before the old key is destroyed
        for name in old_keys:
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
            add: new rows: id (32 hex digits) -> 32-byte data key.
            without: ids of the rows to remove. Old copies of the table still hold them, unless `rotate` is set.
            rotate: seal the table under a new epoch key and destroy the old one.
            erasure: increase the generation, so that readers of the old one stop; remove the kits and the backup key.
            facts: the new sealed facts; None keeps the present ones.

        Raises:
            StorageError, KeystoreError, VerificationFailed: the table was not written, or an old key was not destroyed.
                This object is read from disk again.
        """
        removed_ids = set(without)
        try:
            self.settle()
            rows = {i: key for i, key in self.keys.items() if i not in removed_ids} | dict(add or {})
            numbers = (self.epoch + rotate, self.generation + erasure, self.serial + 1)
            name = epoch_name(numbers[0])
            key = self._keystore.create(name) if rotate else self._keystore.load(name)
            sealed = self.facts if facts is None else facts
            self._write(rows, key, numbers, {f: sealed[f] for f in sealed if not (erasure and f in RETIRED)})
            self._drop_old_log()
            self._destroy_old()
        except FedmemError:
            with contextlib.suppress(FedmemError):
                self.load()
            raise
        with contextlib.suppress(FedmemError):  # if this fails, `settle` notes the serial before the next write
            self._note()

    def use_keystore(self, keystore: Keystore) -> None:
        """Use another keystore from now on; it must hold the table's keys already.

        Args:
            keystore: the new keystore, for example after a move of keys.
        """
        self._keystore = keystore

    def _write(self, rows: dict[str, bytes], key: bytes, numbers: Numbers, facts: dict[str, Any]) -> None:
        data = seal(key, self._vault_id, numbers, facts, rows)
        self._files.replace(self._path, data)
        self._set(numbers, facts, rows, table_log.start(data, numbers[2]), key)

    def _note(self) -> None:
        """Write the numbers of a durable table to the keystore, unless it has noted newer ones."""
        if noted_numbers(self._keystore)[2] < self.serial:
            self._keystore.note(NOTE, _NOTE.pack(self.epoch, self.generation, self.serial))

    def _old_backups(self) -> list[str]:
        return [backup_name(self.generation - 1)] if self.generation else []
