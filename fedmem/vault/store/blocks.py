"""Private blocks: one container for each block version, each under its own data key.

Invariants
- The public header of a container holds spec, release, version and random ids, and no topic name.
- A block is visible only if its row is live and its key is in the key table.
- Rows are read into memory; no mapping of a file stays open after the call.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from fedmem.errors import NothingMatched, VerificationFailed
from fedmem.storage.private_memory import PrivateBuffer, Readable
from fedmem.vault.crypto import container
from fedmem.vault.store.core import Core, batches
from fedmem.vault.store.database import BlockRow
from fedmem.vault.store.topics import ids_of


@dataclass(frozen=True)
class BlockInfo:
    """The facts of a block that are known without opening its rows.

    Attributes:
        id: random id.
        topic: the topic whose records it was trained on.
        release: digest of the release that it belongs to.
        version: 1, 2, … within its topic.
        layers, width, d_model: shape of the rows, [layers, 3, width, d_model].
        run_id: id of the training run that made it.
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
        """Return visible blocks, oldest first.

        Args:
            ids: ids to choose from; None for all blocks. Unknown ids are left out.

        Raises:
            StaleReader: the vault was erased from since it was opened.
        """
        self._core.prepare_read()
        query = select(BlockRow.created, BlockRow.id, BlockRow.sealed).where(BlockRow.state == "live")
        with self._core.database.session() as session:
            rows = session.execute(query).all() if ids is None else []
            for batch in batches(ids or ()):
                rows = [*rows, *session.execute(query.where(BlockRow.id.in_(batch))).all()]
        ordered = sorted(rows, key=lambda row: row[0])
        return [self._info(block_id, sealed) for _, block_id, sealed in ordered if block_id in self._core.table.keys]

    def of(self, topic: str) -> list[BlockInfo]:
        """Return the visible blocks of one topic, oldest first.

        Args:
            topic: name of the topic; an unknown one has no blocks.

        Raises:
            StaleReader: the vault was erased from since it was opened.
        """
        self._core.prepare_read()
        return self.visible(ids_of(self._core.table, topic))

    def get(self, id_or_topic: str) -> BlockInfo:
        """Return the block with this id, or the newest block of this topic.

        Args:
            id_or_topic: id of a block, or name of a topic.

        Raises:
            NothingMatched: there is no such block. StaleReader: the vault was erased from since it was opened.
        """
        blocks = self.visible(frozenset({id_or_topic})) or self.of(id_or_topic)
        if not blocks:
            raise NothingMatched("No block has this id or topic. `fedmem block list` shows what there is.")
        return max(blocks, key=lambda block: block.version)

    def rows(self, block_id: str) -> PrivateBuffer:
        """Return the serialised rows of a block (safetensors).

        The buffer is overwritten with zeros when it is dropped, when the vault is closed, and when an erasure is
        noticed. So a result that was computed from it counts only if `generation` is the same afterwards.

        Args:
            block_id: id of a visible block.

        Raises:
            NothingMatched: there is no such block.
            VerificationFailed: its container is missing, damaged, or belongs to another block.
            StaleReader: the vault was erased from since it was opened.
        """
        info = self.get(block_id)
        try:
            data = self._core.files.read(self._core.block_file(info.id))
        except NothingMatched:
            self._core.prepare_read()  # an erasure may just have removed it
            raise VerificationFailed(
                f"The file of block {info.id} is missing. Put it back, or restore the vault from a backup."
            ) from None
        header, rows = container.unseal(
            self._core.table.keys[info.id], data, identity=self._core.identity("block", info.id)
        )
        if header != _header(info.id, self._core.id, _facts(info)):
            raise container.ContainerCorrupt(
                "The header of a block belongs to another block. Restore the vault from a backup."
            )
        return self._core.memory.keep(rows)

    def facts(
        self, topic: str, release: str, run_id: str, layers: int, width: int, d_model: int, size: int
    ) -> dict[str, Any]:
        """Return the facts of the next version of a topic's block.

        Args:
            topic: the topic whose records the block was trained on.
            release: digest of the release that it belongs to.
            run_id: id of the training run.
            layers, width, d_model: shape of the rows, [layers, 3, width, d_model].
            size: length of the serialised rows, in bytes.
        """
        version = 1 + max((block.version for block in self.of(topic)), default=0)
        spec = {"layers": layers, "width": width, "d_model": d_model}
        return {"topic": topic, "release": release, "version": version, **spec, "run_id": run_id, "bytes": size,
                "created": time.time()}  # fmt: skip

    def write(self, block_id: str, key: Readable, facts: dict[str, Any], rows: Readable) -> None:
        """Write the container of a block. The block stays invisible until its row is live.

        Args:
            block_id: id of the block, 32 hex digits.
            key: its data key, 32 bytes.
            facts: the result of `facts`.
            rows: the serialised rows (safetensors).

        Raises:
            StorageError: there is no container, or the earlier one is in place.
        """
        sealed = container.seal(
            key, _header(block_id, self._core.id, facts), rows, identity=self._core.identity("block", block_id)
        )
        self._core.files.replace(self._core.block_file(block_id), sealed)

    def _info(self, block_id: str, sealed: bytes) -> BlockInfo:
        return BlockInfo(id=block_id, **json.loads(self._core.open_cell("block-facts", block_id, sealed)))


def _facts(info: BlockInfo) -> dict[str, Any]:
    return {"release": info.release, "version": info.version, "layers": info.layers, "width": info.width,
            "d_model": info.d_model}  # fmt: skip


def _header(block_id: str, vault_id: str, facts: dict[str, Any]) -> dict[str, Any]:
    spec = {name: facts[name] for name in ("layers", "width", "d_model")}
    return {"kind": "block", "id": block_id, "vault": vault_id, "release": facts["release"],
            "version": facts["version"], "spec": spec}  # fmt: skip
