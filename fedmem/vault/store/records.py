"""Records of a vault: text, topic, path and vector, each record sealed under its own data key.

Invariants
- A batch is one table write and one transaction: all of its records are stored, or none (I7).
- Topic, text, path, vector and release are ciphertext (I8); `repr` of a record shows its id alone.
- All vectors of a vault have one width: a batch of another embedder is refused, and so is such a search.
- Search is exact (see `vectors`) and opens only the records that it returns.

>>> NewRecord("a note", "health", (1, 7), np.zeros(2, np.float32), "r1")
NewRecord()
"""

import json
import struct
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import insert, select, text

from fedmem.errors import NothingMatched, UsageError, VersionMismatch
from fedmem.storage.canonical import canonical_json
from fedmem.storage.ids import new_id
from fedmem.storage.private_memory import PrivateBuffer
from fedmem.vault.crypto import container
from fedmem.vault.store.core import Core, batches
from fedmem.vault.store.database import RecordRow
from fedmem.vault.store.topics import Everything, ids_of, rewrite
from fedmem.vault.store.vectors import Vector, VectorIndex

_LENGTH = struct.Struct(">I")
_NEWEST = 8  # rows to look at for one that has its key; the others belong to an erasure that is not finished


@dataclass(frozen=True, eq=False)
class NewRecord:
    """A record to add.

    Attributes:
        text: any valid Unicode.
        topic: name of the topic; None for a shareable record.
        path: cluster ids, from level 1 on.
        vector: float32 [dim], finite.
        release: digest of the release that routed and embedded it.
    """

    text: str = field(repr=False)
    topic: str | None = field(repr=False)
    path: tuple[int, ...] = field(repr=False)
    vector: Vector = field(repr=False)
    release: str = field(repr=False)


@dataclass(frozen=True, eq=False)
class Record:
    """A stored record; its attributes are those of `NewRecord`, and a random `id`."""

    id: str
    topic: str | None = field(repr=False)
    text: str = field(repr=False)
    path: tuple[int, ...] = field(repr=False)
    vector: Vector = field(repr=False)
    release: str = field(repr=False)


class Records:
    """The records of an open vault."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._vectors = VectorIndex()
        core.forget.append(self._vectors.wipe)

    def add(self, records: Sequence[NewRecord]) -> list[str]:
        """Seal and store `records`, and return their ids in order. An empty batch does nothing.

        Args:
            records: the new records. Their vectors are finite, float32 [dim], of one width.

        Raises:
            UsageError: a vector is not one finite row, or a text is not valid Unicode.
            VersionMismatch: the vectors have another width than those of the vault, or than each other.
            Refused: the vault is open for reading only.
            StorageError: nothing was added.
        """
        if not records:
            return []
        plain = [_encode(record) for record in records]
        keys = {new_id(): container.new_key() for _ in records}
        rows = [
            {"id": item, "created": time.time(), "sealed": self._core.seal("record", item, key, data)}
            for (item, key), data in zip(keys.items(), plain, strict=True)
        ]
        with self._core.writing():
            _check_width({len(record.vector) for record in records} | self._stored_width())
            rewrite(self._core.table, add=keys, topics=dict(zip(keys, (r.topic for r in records), strict=True)))
            with self._core.database.session() as session:
                session.execute(insert(RecordRow), rows)
        return list(keys)

    def select(self, topic: str | Everything | None) -> list[Record]:
        """Return records in the order in which they were added.

        Args:
            topic: name of a topic; None for the shareable records; `ALL` for all.

        Raises:
            StaleReader: the vault was erased from since it was opened.
        """
        self._core.prepare_read()
        records = self._read(None if isinstance(topic, Everything) else ids_of(self._core.table, topic))
        return [record for record in records if isinstance(topic, Everything) or record.topic == topic]

    def get(self, ids: Collection[str]) -> list[Record]:
        """Return the records with these ids, in the order in which they were added.

        Args:
            ids: ids of records; a repeated id counts once.

        Raises:
            NothingMatched: an id is unknown. StaleReader: the vault was erased from since it was opened.
        """
        self._core.prepare_read()
        records = self._read(frozenset(ids))
        if len(records) != len(set(ids)):
            raise NothingMatched("No record has this id. `Client.add` and `Client.search` give the ids of records.")
        return records

    def created(self) -> dict[str, float]:
        """Return for each record id the time at which it was added, in seconds since 1970."""
        self._core.prepare_read()
        with self._core.database.session() as session:
            rows = session.execute(select(RecordRow.id, RecordRow.created)).all()
        return {item: created for item, created in rows if item in self._core.table.keys}

    def _read(self, ids: frozenset[str] | None) -> list[Record]:
        """Open the rows of `ids`, or all rows (None), oldest first."""
        order = text("rowid")  # clocks move; row numbers only grow
        query = select(order, RecordRow.id, RecordRow.sealed).select_from(RecordRow).order_by(order)
        with self._core.database.session() as session:
            rows = session.execute(query).all() if ids is None else []
            for batch in batches(ids or ()):
                rows = [*rows, *session.execute(query.where(RecordRow.id.in_(batch))).all()]
        keys = self._core.table.keys
        return [_decode(item, self._core.open_cell("record", item, sealed))
                for _, item, sealed in sorted(rows, key=lambda row: row[0]) if item in keys]  # fmt: skip

    def _stored_width(self) -> set[int]:
        """Return the width of the newest record's vector, as a set that is empty if the vault holds no record."""
        query = select(RecordRow.id, RecordRow.sealed).order_by(text("rowid DESC")).limit(_NEWEST)
        with self._core.database.session() as session:
            rows = [row for row in session.execute(query) if row.id in self._core.table.keys]
        return {len(_vector(self._core.open_cell("record", row.id, row.sealed))) for row in rows[:1]}

    def search(self, vector: Vector, k: int) -> list[tuple[Record, float]]:
        """Return the records nearest to a vector, with their scores, best first; ties by id.

        Args:
            vector: float32 [dim], finite.
            k: the greatest number of records.

        Returns:
            (record, dot product) pairs.

        Raises:
            UsageError: the vector is not one finite row.
            VersionMismatch: a record of the vault has a vector of another width.
            StaleReader: the vault was erased from since it was opened.
        """
        query = _row(vector)
        self._core.prepare_read()
        self._read_vectors()
        _check_width({len(query), *self._vectors.widths})
        nearest = dict(self._vectors.nearest(query, k))
        records = {record.id: record for record in self._read(frozenset(nearest))}
        return [(records[item], score) for item, score in nearest.items() if item in records]

    def _read_vectors(self) -> None:
        """Add the vectors of the records that were added since the last search."""
        order = text("rowid")
        query = select(order, RecordRow.id, RecordRow.sealed).select_from(RecordRow).order_by(order)
        with self._core.database.session() as session:
            rows = session.execute(query.where(text("rowid > :last")), {"last": self._vectors.last_row}).all()
        if rows:
            self._core.prepare_read()  # the keys of rows that were added since the table was read
        for number, item, sealed in rows:
            if item in self._core.table.keys:  # else an erasure is not finished
                self._vectors.add(item, _vector(self._core.open_cell("record", item, sealed)))
            self._vectors.last_row = number


def _check_width(widths: Collection[int]) -> None:
    """Raise VersionMismatch if there are several widths: the vectors of two embedders cannot be compared."""
    if len(widths) > 1:
        raise VersionMismatch(
            "This vault's records were embedded by another embedder. Open the vault with a release of that embedder, "
            "or without a release if they were added without one; for a release of another embedder use a new vault."
        )


def _row(vector: Vector) -> Vector:
    row: Vector = np.ascontiguousarray(vector, dtype="<f4")
    if row.ndim != 1 or not bool(np.isfinite(row).all()):
        raise UsageError("A vector is one row of finite numbers. Embed the text again.")
    return row


def _encode(record: NewRecord) -> bytes:
    facts = {"topic": record.topic, "text": record.text, "path": list(map(int, record.path)), "release": record.release}
    try:
        public = canonical_json(facts)
    except ValueError:  # the text of this error would quote the record
        raise UsageError("A record's text is not valid Unicode. Decode it again, with errors='replace'.") from None
    return _LENGTH.pack(len(public)) + public + _row(record.vector).tobytes()


def _decode(item: str, data: PrivateBuffer) -> Record:
    facts = json.loads(bytes(memoryview(data)[_LENGTH.size : _vector_start(data)]))
    vector = np.frombuffer(PrivateBuffer(memoryview(data)[_vector_start(data) :]), dtype="<f4")
    return Record(item, facts["topic"], facts["text"], tuple(facts["path"]), vector, facts["release"])


def _vector(data: PrivateBuffer) -> Vector:
    """Return the vector of an encoded record, as a view of it."""
    return np.frombuffer(data, dtype="<f4", offset=_vector_start(data))


def _vector_start(data: PrivateBuffer) -> int:
    return _LENGTH.size + int(_LENGTH.unpack_from(data)[0])
