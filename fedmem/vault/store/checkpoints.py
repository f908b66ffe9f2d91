"""Checkpoints of training runs: the sealed state from which a run goes on in a later session.

Invariants
- A checkpoint is ciphertext under a key that is derived from the run key. When the run key is destroyed, by the end of
  the run or by an erasure, no copy of the checkpoint opens any more.
- It is bound to vault, run key and step. A run has at most one; it is replaced whole (I7).
- It is written for an open run only, under the writer lock, so that it never outlives an erasure.
- The step is public and stands in the header. Backups leave out checkpoints and run keys.

An older checkpoint of the same run that is put back costs time only: data, plan and stream belong to the run, so the
same steps are repeated to the same bytes. For the same reason a damaged checkpoint is treated as a missing one.

    vault.save_checkpoint(run, step, tensors)
    vault.checkpoint(run)                        # (step, tensors), or None
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.storage.private_memory import PrivateBuffer
from fedmem.vault.crypto import container
from fedmem.vault.store.content_stores import StoredItem, container_item, stems_in
from fedmem.vault.store.core import Core

FOLDER = "training"
SUFFIX = ".fmc"
_HEAD = container.PREFIX.size + container.MAX_HEADER


class Checkpoints:
    """The checkpoints of an open vault, named by the ids of their run keys."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def save(self, key_id: str, run_key: bytes, step: int, data: bytes) -> None:
        """Seal `data` as the state of a run after `step` steps, and replace its earlier checkpoint.

        Args:
            key_id: id of the run key.
            run_key: 32 bytes.
            step: steps that are done, from 0.
            data: the serialised state.

        Raises:
            StorageError: the earlier checkpoint is still in place.
        """
        header = {"kind": "checkpoint", "id": key_id, "vault": self._core.id, "step": step}
        sealed = container.seal(_key(run_key), header, data, identity=self._core.identity("checkpoint", key_id))
        self._core.files.make_folder(self.path(key_id).parent)
        self._core.files.replace(self.path(key_id), sealed)

    def load(self, key_id: str, run_key: bytes) -> tuple[int, PrivateBuffer] | None:
        """Return (step, data) of a run's checkpoint; None if there is none, or a damaged one.

        Args:
            key_id: id of the run key.
            run_key: 32 bytes.

        Raises:
            StorageError: the file cannot be read.
        """
        identity = self._core.identity("checkpoint", key_id)
        with contextlib.suppress(NothingMatched, VerificationFailed, VersionMismatch):
            header, data = container.unseal(_key(run_key), self._core.files.read(self.path(key_id)), identity=identity)
            return int(header["step"]), data
        return None

    def step(self, key_id: str) -> int:
        """Return the step of a run's checkpoint, read from its public header; 0 if there is none.

        Args:
            key_id: id of the run key.
        """
        with contextlib.suppress(NothingMatched, VerificationFailed, VersionMismatch):
            head = self._core.files.read(self.path(key_id), limit=_HEAD)
            return int(container.read_header(head, whole=False)[0]["step"])
        return 0

    def drop(self, key_ids: Iterable[str]) -> None:
        """Remove the checkpoints with these run key ids. A missing one is ignored.

        Args:
            key_ids: ids of run keys.
        """
        paths = [path for key_id in key_ids if (path := self.path(key_id)).exists()]
        for path in paths:
            self._core.files.unlink(path)
        if paths:
            self._core.files.sync_folder(paths[0].parent)

    def settle(self) -> None:
        """Remove temporary files that a crash left, and checkpoints whose run key is destroyed."""
        folder = self._core.root / FOLDER
        self._core.files.sweep(folder)
        key_ids = [path.stem for path in folder.glob(f"*{SUFFIX}")]
        self.drop(key_id for key_id in key_ids if key_id not in self._core.table.keys)

    def path(self, key_id: str) -> Path:
        """Return the path of the checkpoint of a run key.

        Args:
            key_id: id of the run key, 32 hex digits.
        """
        return self._core.root / FOLDER / f"{key_id}{SUFFIX}"


class CheckpointStore:
    """The checkpoints of runs, as a content store: a checkpoint is erased with the key of its run."""

    name, order = "checkpoints", 2
    method = "unlinked, folder synced; crypto-erased before with the key of their run"
    claims = frozenset({FOLDER})

    def __init__(self, core: Core) -> None:
        self._core, self._checkpoints = core, Checkpoints(core)

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return [self._item(key_id) for key_id in stems_in(self._core.root / FOLDER, ids)]

    def erase(self, ids: frozenset[str]) -> None:
        self._checkpoints.drop(stems_in(self._core.root / FOLDER, ids))

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [f"the checkpoint of run key {item.id} exists" for item in self.enumerate(ids)]

    def _item(self, key_id: str) -> StoredItem:
        data = self._core.files.read(self._checkpoints.path(key_id))
        return container_item(self.name, key_id, "checkpoint", data)


def _key(run_key: bytes) -> bytes:
    """Return the key of a run's checkpoint.

    It differs from the key of the run's random stream, so neither reveals anything about the other.
    """
    return HKDF(SHA256(), 32, salt=None, info=b"fedmem checkpoint/1").derive(run_key)
