"""Private blocks: one container per block version, each under its own data key.

Invariants
- The public header of a container holds spec, release, version and random ids: no topic name.
- A block is visible once its row is live and its key is in the key table, never earlier.
- Rows are read into memory; no mapping of a file outlives the call.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from fedmem.errors import NothingMatched, VerificationFailed
from fedmem.vault.crypto import container
from fedmem.vault.store.core import Core, batches
from fedmem.vault.store.database import BlockRow
from fedmem.vault.store.topics import ids_of


@dataclass(frozen=True)
class BlockInfo:
    """What is known of a block without opening its rows.

    Attributes:
        version: 1, 2, … within its topic.
        layers, width, d_model: shape of the rows, [layers, 3, width, d_model].
        bytes: length of the serialised rows.
        created: seconds since 1970.
    """

    id: str
    topic: str = field(repr=False)
    release: str
    version: int
    layers: int
    width: int
    d_model: int
    run_id: str
    bytes: int
    created: float


class BlockStore:
    """The blocks of an open vault."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def visible(self, ids: frozenset[str] | None = None) -> list[BlockInfo]:
        """All blocks that exist, or those among `ids`, oldest first."""
        self._core.reading()
        query = select(BlockRow.created, BlockRow.id, BlockRow.sealed).where(BlockRow.state == "live")
        with self._core.database.session() as session:
            rows = session.execute(query).all() if ids is None else []
            for batch in batches(ids or ()):
                rows = [*rows, *session.execute(query.where(BlockRow.id.in_(batch))).all()]
        ordered = sorted(rows, key=lambda row: row[0])
        return [self._info(item, sealed) for _, item, sealed in ordered if item in self._core.table.keys]

    def of(self, topic: str) -> list[BlockInfo]:
        """The blocks of one topic, oldest first."""
        self._core.reading()
        return self.visible(ids_of(self._core.table, topic))

    def get(self, id_or_topic: str) -> BlockInfo:
        """The block with this id, or the newest one of this topic. Raises NothingMatched."""
        found = self.visible(frozenset({id_or_topic})) or self.of(id_or_topic)
        if not found:
            raise NothingMatched("No block has this id or topic. `fedmem block list` shows what there is.")
        return max(found, key=lambda block: block.version)

    def rows(self, block_id: str) -> bytes:
        """The serialised rows. Raises NothingMatched, or VerificationFailed where the container is damaged."""
        info = self.get(block_id)
        try:
            data = self._core.files.read(self._core.block_file(info.id))
        except NothingMatched:
            self._core.reading()  # an erasure may just have removed it
            raise VerificationFailed(
                f"The file of block {info.id} is missing. Put it back, or restore the vault from a backup."
            ) from None
        header, rows = container.unseal(
            self._core.table.keys[info.id], data, identity=self._core.identity("block", info.id)
        )
        if header != _header(info.id, self._core.id, _facts(info)):
            raise container.ContainerCorrupt("A block's header is not its own. Restore the vault from a backup.")
        return rows

    def facts(
        self, topic: str, release: str, run_id: str, layers: int, width: int, d_model: int, size: int
    ) -> dict[str, Any]:
        """Facts of the next version of a topic's block."""
        version = 1 + max((block.version for block in self.of(topic)), default=0)
        spec = {"layers": layers, "width": width, "d_model": d_model}
        return {"topic": topic, "release": release, "version": version, **spec, "run_id": run_id, "bytes": size,
                "created": time.time()}  # fmt: skip

    def write(self, block_id: str, key: bytes, facts: dict[str, Any], rows: bytes) -> None:
        """Write the container; nothing sees it before its row is live."""
        sealed = container.seal(
            key, _header(block_id, self._core.id, facts), rows, identity=self._core.identity("block", block_id)
        )
        self._core.files.replace(self._core.block_file(block_id), sealed)

    def _info(self, item: str, sealed: bytes) -> BlockInfo:
        return BlockInfo(id=item, **json.loads(self._core.open_cell("block-facts", item, sealed)))


def _facts(info: BlockInfo) -> dict[str, Any]:
    return {"release": info.release, "version": info.version, "layers": info.layers, "width": info.width,
            "d_model": info.d_model}  # fmt: skip


def _header(block_id: str, vault_id: str, facts: dict[str, Any]) -> dict[str, Any]:
    spec = {name: facts[name] for name in ("layers", "width", "d_model")}
    return {"kind": "block", "id": block_id, "vault": vault_id, "release": facts["release"],
            "version": facts["version"], "spec": spec}  # fmt: skip
