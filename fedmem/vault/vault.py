"""The vault: the encrypted store of one subject on one device.

Invariants
- Private bytes reach the disk only as ciphertext, temporary files included (I8).
- An acknowledged change survives `kill -9`; a crash leaves the old state or the new one (I7).
- There is one writer at a time. The subject is bound at creation and asked for at each opening.
- The keystore backend is chosen at creation, or when keys move. A simulated vault stays simulated for ever.
- A vault with a file or table that no registered store claims does not open.

Layout of the root: vault.json, device.pub, table.fmk, vault.db, egress.log, reserve, lock, blocks/, receipts/, leases/,
training/.

A method that reads items raises UsageError after `close`, and StaleReader if an erasure happened since the opening.
A method that changes items raises Refused in a vault that is open for reading only.

>>> import os, tempfile, numpy as np
>>> with tempfile.TemporaryDirectory() as folder:
...     os.environ["FEDMEM_HOME"] = folder + "/home"
...     with Vault.create(folder + "/v", subject="alice") as vault:
...         ids = vault.add_records([NewRecord("a note", "health", (0,), np.ones(2, np.float32), "r1")])
...         len(vault.records("health"))
1
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy.orm import Session

from fedmem.errors import VersionMismatch
from fedmem.storage.files import Files
from fedmem.storage.private_memory import PrivateBuffer
from fedmem.vault import opening
from fedmem.vault.backup.backup_registry import CopyStore
from fedmem.vault.crypto.keystore import Ask
from fedmem.vault.store import acknowledgement, ledger_anchor, reserve
from fedmem.vault.store.blocks import BlockInfo, BlockStore
from fedmem.vault.store.checkpoints import Checkpoints, CheckpointStore
from fedmem.vault.store.content_stores import BUILT_IN, ContentStore, check_claims, valid_store
from fedmem.vault.store.core import Core, StaleReader
from fedmem.vault.store.inventory import Inventory
from fedmem.vault.store.ledger import Event, Ledger
from fedmem.vault.store.records import NewRecord, Record, Records
from fedmem.vault.store.runs import RunRecord, Runs, TrainingRun
from fedmem.vault.store.topics import ALL, FACTS, Everything, ids_of, keep, retention
from fedmem.vault.store.turns import serialised_methods
from fedmem.vault.store.vectors import Vector

__all__ = ["ALL", "BlockInfo", "Event", "NewRecord", "Record", "RunRecord", "StaleReader", "TrainingRun", "Vault"]


@serialised_methods
class Vault:
    """An open vault. Make one with `create` or `open`; use it as a context manager.

    Attributes:
        core: the open parts, which every store of the vault shares.
        ledger: the privacy ledger.
        stores: the content stores, in the order in which an erasure asks them.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.ledger = Ledger(core)
        self._records = Records(core)
        self._blocks = BlockStore(core)
        self._checkpoints = Checkpoints(core)
        self._runs = Runs(core, self.ledger, self._blocks, self._checkpoints)
        self.stores: list[ContentStore] = []
        for make in (*BUILT_IN, CheckpointStore, CopyStore):
            self.register(make(core))
        self._inventory = Inventory(core, self._runs)
        core.catch_up, core.acknowledge = self._inventory.catch_up, self._acknowledge
        core.database.seal_serial = self._seal_serial

    @classmethod
    def create(
        cls,
        root: str | Path,
        *,
        subject: str,
        keystore: str = "keyfile",
        ask: Ask | None = None,
        simulated: bool = False,
        files: Files | None = None,
        timeout: float = opening.TIMEOUT,
    ) -> "Vault":
        """Create a vault in a new or empty folder and open it for writing.

        Args:
            root: the folder.
            subject: the person whose data it will hold.
            keystore: keyfile, passphrase or keyring.
            ask: returns the passphrase, in passphrase mode.
            simulated: allow seeded run keys, and mark the vault for ever.
            files: the file layer; tests pass one that fails.
            timeout: seconds to wait for another program that creates a vault here, and before each change for others.

        Returns:
            The open vault.

        Raises:
            VaultExists: there is a vault already. Refused: the folder holds something else.
            VerificationFailed: a vault in the folder lost its header.
            Busy, KeystoreError, StorageError, UsageError.
        """
        core = opening.create_vault(
            Path(root), subject=subject, keystore=keystore, ask=ask, simulated=simulated, files=files, timeout=timeout
        )
        try:
            vault = cls(core)
            core.take_lease()
            reserve.keep(core)
        except BaseException:
            core.close()
            raise
        core.end_turn()
        return vault

    @classmethod
    def open(
        cls,
        root: str | Path,
        *,
        subject: str,
        ask: Ask | None = None,
        write: bool = True,
        files: Files | None = None,
        timeout: float = opening.TIMEOUT,
    ) -> "Vault":
        """Open an existing vault. A writer also finishes or undoes the rest of a crash.

        Args:
            root: the folder.
            subject: the person whose data it holds.
            ask: returns the passphrase, in passphrase mode.
            write: False opens the vault for reading only. Any number of programs may read and write.
            files: the file layer; tests pass one that fails.
            timeout: seconds to wait for other writers, now and before each change.

        Returns:
            The open vault.

        Raises:
            NothingMatched: there is no vault here. Busy: other programs changed it for longer than `timeout`.
            KeystoreError: wrong passphrase or missing key. Refused: another subject, or a file that no store claims.
            VerificationFailed: damaged, incomplete, or older than the last acknowledged change. Nothing was changed.
            VersionMismatch: another format.
        """
        root, files = Path(root), files or Files()

        def work() -> Vault:
            core = opening.open_vault(root, subject=subject, ask=ask, write=write, files=files, timeout=timeout)
            try:
                vault = cls(core)
                vault._start()
            except BaseException:
                core.close()
                raise
            return vault

        return reserve.with_room(files, root, work)

    @property
    def id(self) -> str:
        """The vault's random id."""
        return self.core.id

    @property
    def root(self) -> Path:
        """The vault's folder."""
        return self.core.root

    @property
    def simulated(self) -> bool:
        """True if its run keys may come from a seed."""
        return self.core.simulated

    @property
    def generation(self) -> int:
        """The number of erasures so far, by any process. An answer in progress checks it between tokens."""
        return self.core.generation()

    def add_records(self, records: Sequence[NewRecord]) -> list[str]:
        """Add a batch of records, all or none.

        Returns:
            The new ids, in the order of `records`.

        Raises:
            UsageError: a vector is not one finite row, or a text is not valid Unicode. StorageError: nothing was added.
            VersionMismatch: the vectors are of another embedder than those of the vault.
        """
        with self.core.turn():
            ids = self._records.add(records)
            reserve.keep(self.core)
        return ids

    def records(self, topic: str | Everything | None) -> list[Record]:
        """Return the records of one topic, the shareable ones (None), or `ALL`, in the order they were added."""
        return self._records.select(topic)

    def records_by_id(self, ids: Collection[str]) -> list[Record]:
        """Return the records with these ids, in the order they were added. Raises NothingMatched for an unknown id."""
        return self._records.get(ids)

    def records_before(self, when: float, topic: str | Everything | None = ALL) -> frozenset[str]:
        """Return the ids of the records that were added before a time.

        Args:
            when: seconds since 1970.
            topic: a topic, the shareable records (None), or `ALL`.
        """
        ids = ids_of(self.core.table, topic)
        return frozenset(
            record_id for record_id, created in self._records.created().items() if created < when and record_id in ids
        )

    def keep(self, topic: str, days: float | None) -> None:
        """Set for how many days the records of a topic are kept.

        The rule is sealed. An erasure with the scope `due` applies it, and an erasure of the topic erases it.

        Args:
            topic: name of the topic.
            days: above 0 and below 36500; None removes the rule.

        Raises:
            UsageError: another topic or number of days. StorageError: the rule is as it was.
        """
        with self.core.writing():
            keep(self.core.table, topic, days)

    def retention(self) -> dict[str, float]:
        """Return for each topic with a retention rule the days for which its records are kept."""
        self.core.prepare_read()
        return retention(self.core.table)

    def search(self, vector: Vector, k: int) -> list[tuple[Record, float]]:
        """Return the `k` records nearest to `vector`, with dot products, best first. See `records.Records.search`."""
        return self._records.search(vector, k)

    def begin_run(
        self,
        topic: str,
        release: str,
        plan: Mapping[str, Any],
        data_digest: str,
        record_ids: Sequence[str],
        spend: Mapping[str, Any],
        run_key: bytes | None = None,
    ) -> TrainingRun:
        """Charge a training run, durably, or resume the open one with equal data and plan. See `runs.Runs.begin`."""
        return self._runs.begin(topic, release, plan, data_digest, record_ids, spend, run_key)

    def finish_run(
        self, run: TrainingRun, topic: str, release: str, rows: bytes, layers: int, width: int, d_model: int
    ) -> BlockInfo:
        """Seal a run's rows as a block, after its run key was destroyed. See `runs.Runs.finish`."""
        return self._runs.finish(run, topic, release, rows, layers, width, d_model)

    def end_changed_runs(
        self, topic: str, release: str, plan: Mapping[str, Any], data_digest: str, record_ids: Sequence[str]
    ) -> bool:
        """End open runs with other data or another plan; return True if there was one. See `runs.Runs.end_changed`."""
        return self._runs.end_changed(topic, release, plan, data_digest, record_ids)

    def save_checkpoint(self, run: TrainingRun, step: int, data: bytes) -> None:
        """Seal the state of an open run after `step` steps, and replace its earlier checkpoint.

        Args:
            run: the open run.
            step: steps that are done, from 0.
            data: the serialised state.

        Raises:
            NothingMatched: the run is not open. StorageError: the earlier checkpoint is still in place.
        """
        self._runs.save(run, step, data)

    def checkpoint(self, run: TrainingRun) -> tuple[int, PrivateBuffer] | None:
        """Return (step, data) of the last checkpoint of an open run; None if it has none. Raises NothingMatched."""
        return self._runs.saved(run)

    def checkpoint_step(self, run: RunRecord) -> int:
        """Return the step of a run's last checkpoint; 0 if it has none."""
        self.core.prepare_read()
        return self._checkpoints.step(run.key_id)

    def runs(self, topic: str) -> list[RunRecord]:
        """Return the runs of a topic, of every state, oldest first."""
        return self._runs.of(topic)

    def runs_by_id(self, ids: Collection[str]) -> list[RunRecord]:
        """Return the runs with these ids, oldest first. Other ids are left out."""
        return self._runs.get(ids)

    def plan_runs(self, planned: Sequence[RunRecord], commit: Callable[[Session], None]) -> None:
        """Write planned runs, in one transaction with the rows that `commit` writes. Nothing is charged.

        Args:
            planned: runs in the state `wanted`, with new ids.
            commit: writes rows of the caller into the same transaction.

        Raises:
            StorageError: nothing was written.
        """
        with self.core.writing():
            self._runs.plan(planned, commit)

    def drop_planned_runs(self, ids: Collection[str]) -> None:
        """Delete the planned runs with these ids. Runs that have begun are left as they are."""
        with self.core.writing():
            self._runs.drop_planned(ids)

    def fail_run(self, run: TrainingRun) -> None:
        """End an open run without a block. It stays charged. Raises NothingMatched if it is not open."""
        self._runs.fail(run)

    def end_run(self, run_id: str) -> None:
        """End an open run by its id, without a block. It stays charged. A run that has ended is left as it is."""
        self._runs.end(run_id)

    def blocks(self) -> list[BlockInfo]:
        """Return all blocks, oldest first."""
        return self._blocks.visible()

    def blocks_of(self, topic: str) -> list[BlockInfo]:
        """Return the blocks of one topic, oldest first."""
        return self._blocks.of(topic)

    def block(self, id_or_topic: str) -> BlockInfo:
        """Return the block with this id, or the newest block of this topic. Raises NothingMatched."""
        return self._blocks.get(id_or_topic)

    def block_rows(self, block_id: str) -> PrivateBuffer:
        """Return the serialised rows (safetensors) of a block. Raises NothingMatched, VerificationFailed.

        The buffer is overwritten with zeros when it is dropped, when the vault is closed, and when an erasure is
        noticed. So a result that was computed from it counts only if `generation` is the same afterwards.
        """
        return self._blocks.rows(block_id)

    def register(self, store: ContentStore) -> None:
        """Add a store that holds content of this vault in memory: a search index, a KV cache, an optimiser.

        Raises:
            Refused: it does not keep the contract of `ContentStore`, or has the name of another store.
        """
        self.stores = sorted([*self.stores, valid_store(store, self.stores)], key=lambda registered: registered.order)

    def unfinished_erasures(self) -> list[str]:
        """Return the ids of unfinished erasures, oldest first; `fedmem.erasure.resume` finishes them."""
        return self._inventory.unfinished_erasures()

    def ids_of(self, topic: str | Everything | None) -> frozenset[str]:
        """Return the ids of a topic's records, blocks, runs and run keys; of the shareable records (None); of `ALL`."""
        self.core.prepare_read()
        return ids_of(self.core.table, topic)

    def close(self) -> None:
        """Close the vault. Calling it twice is fine. In a forked child it leaves the parent's vault open."""
        self.core.close()

    def __enter__(self) -> "Vault":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _acknowledge(self) -> None:
        """Note a durable change in the keystore: the ledger's head, and the state of table and database."""
        ledger_anchor.write_note(self.core)
        acknowledgement.acknowledge(self.core)

    def _seal_serial(self) -> bytes:
        if self.core.writer is None:
            raise RuntimeError("A change of the vault needs its writer lock; see Core.writing.")
        return acknowledgement.sealed_serial(self.core)

    def _start(self) -> None:
        check_claims(self.core, self.stores)
        if not FACTS.keys() <= self.core.table.facts.keys():
            if not self.core.write:
                raise VersionMismatch(
                    "This vault is of an earlier fedmem. Open it for writing once, which brings it up to date."
                )
            self._inventory.index(self._records)
        if self.core.write:
            self._inventory.sweep()
            self._inventory.catch_up()
            self.core.table.settle()
            reserve.keep(self.core)
        self.core.take_lease()
        self.core.end_turn()
