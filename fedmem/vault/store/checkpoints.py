"""Checkpoints of training runs: where a run stands, sealed, so that it can go on in another session.

Invariants
- Ciphertext under a key that is derived from the run's own: when the run key is destroyed, by the end of the run or by
  an erasure, no copy of a checkpoint opens any more.
- Bound to vault, run key and step. A run has at most one; it is replaced whole (I7).
- It is written for an open run only, under the writer lock, so that it never outlives an erasure.
- The step is public and stands in the header. Backups leave checkpoints out, as they do run keys.

An older checkpoint of the same run that is put back costs time and nothing else: data, plan and stream are the run's,
so the same steps are repeated to the same bytes. One that is damaged counts as none, for the same reason.

    vault.save_checkpoint(run, step, tensors)
    vault.checkpoint(run)                        # (step, tensors), or None
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.vault.crypto import container
from fedmem.vault.store.content_stores import StoredItem, container_item
from fedmem.vault.store.core import Core

FOLDER = "training"
SUFFIX = ".fmc"
_HEAD = container.PREFIX.size + container.MAX_HEADER


class Checkpoints:
    """The checkpoints of an open vault, by the ids of their run keys."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def save(self, key_id: str, run_key: bytes, step: int, data: bytes) -> None:
        """Seal `data` as where the run stands after `step` steps, in place of an earlier one. Raises StorageError."""
        header = {"kind": "checkpoint", "id": key_id, "vault": self._core.id, "step": step}
        sealed = container.seal(_key(run_key), header, data, identity=self._core.identity("checkpoint", key_id))
        self._core.files.make_folder(self.path(key_id).parent)
        self._core.files.replace(self.path(key_id), sealed)

    def load(self, key_id: str, run_key: bytes) -> tuple[int, bytes] | None:
        """(step, data) of a run's checkpoint; None where there is none that is whole."""
        identity = self._core.identity("checkpoint", key_id)
        with contextlib.suppress(NothingMatched, VerificationFailed, VersionMismatch):
            header, data = container.unseal(_key(run_key), self._core.files.read(self.path(key_id)), identity=identity)
            return int(header["step"]), data
        return None

    def step(self, key_id: str) -> int:
        """The step of a run's checkpoint, from its public header; 0 where there is none."""
        with contextlib.suppress(NothingMatched, VerificationFailed, VersionMismatch):
            head = self._core.files.read(self.path(key_id), limit=_HEAD)
            return int(container.read_header(head, whole=False)[0]["step"])
        return 0

    def drop(self, key_ids: Iterable[str]) -> None:
        """Remove checkpoints; a missing one is fine."""
        found = [path for key_id in key_ids if (path := self.path(key_id)).exists()]
        for path in found:
            self._core.files.unlink(path)
        if found:
            self._core.files.sync_folder(found[0].parent)

    def settle(self) -> None:
        """Remove what a crash left: temporary files, and checkpoints whose run key is gone."""
        folder = self._core.root / FOLDER
        self._core.files.sweep(folder)
        stems = [path.stem for path in folder.glob(f"*{SUFFIX}")]
        self.drop(stem for stem in stems if stem not in self._core.table.keys)

    def path(self, key_id: str) -> Path:
        """Where the checkpoint of a run key lies."""
        return self._core.root / FOLDER / f"{key_id}{SUFFIX}"


class CheckpointStore:
    """Checkpoints of runs, for erasures: they go with the key of their run."""

    name, order = "checkpoints", 2
    method = "unlinked, folder synced; crypto-erased before with the key of their run"
    claims = frozenset({FOLDER})

    def __init__(self, core: Core) -> None:
        self._core, self._checkpoints = core, Checkpoints(core)

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return [self._item(item) for item in sorted(ids) if self._checkpoints.path(item).exists()]

    def erase(self, ids: frozenset[str]) -> None:
        self._checkpoints.drop(sorted(ids))

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [f"the checkpoint of run key {item.id} exists" for item in self.enumerate(ids)]

    def _item(self, key_id: str) -> StoredItem:
        data = self._core.files.read(self._checkpoints.path(key_id))
        return container_item(self.name, key_id, "checkpoint", data)


def _key(run_key: bytes) -> bytes:
    """A key of its own for checkpoints: the run's stream is keyed otherwise, so neither tells of the other."""
    return HKDF(SHA256(), 32, salt=None, info=b"fedmem checkpoint/1").derive(run_key)
