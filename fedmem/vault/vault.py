"""The vault: the encrypted store of one subject on one device.

Invariants
- Private bytes reach the disk only as ciphertext, temporary files included (I8).
- What was acknowledged survives `kill -9`; a crash leaves the old state or the new one (I7).
- One writer at a time; the subject is bound at creation and asked for at each opening.
- The keystore backend is the one chosen, at creation or when keys move; a simulated vault is simulated for ever.
- A vault with a file or table that no registered store answers for does not open.

Layout of the root: vault.json, device.pub, table.fmk, vault.db, egress.log, lock, blocks/, receipts/, leases/,
training/.

>>> import os, tempfile
>>> import numpy as np
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

from fedmem.errors import Refused, VersionMismatch
from fedmem.storage.files import Files
from fedmem.vault import opening
from fedmem.vault.backup.backup_registry import CopyStore
from fedmem.vault.crypto.keystore import Ask
from fedmem.vault.store import acknowledgement
from fedmem.vault.store import ledger_anchor as heads
from fedmem.vault.store.blocks import BlockInfo, BlockStore
from fedmem.vault.store.checkpoints import Checkpoints, CheckpointStore
from fedmem.vault.store.content_stores import BUILT_IN, ContentStore, checked, unclaimed
from fedmem.vault.store.core import Core, StaleReader, serialised_methods
from fedmem.vault.store.inventory import Inventory
from fedmem.vault.store.leases import Lease
from fedmem.vault.store.ledger import Event, Ledger
from fedmem.vault.store.records import NewRecord, Record, Records, Vector
from fedmem.vault.store.runs import RunRecord, Runs, TrainingRun
from fedmem.vault.store.topics import ALL, FACTS, Everything, ids_of, keep, retention

__all__ = ["ALL", "BlockInfo", "Event", "NewRecord", "Record", "RunRecord", "StaleReader", "TrainingRun", "Vault"]


@serialised_methods
class Vault:
    """An open vault. Make one with `create` or `open`; use it as a context manager.

    Attributes:
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
        core.recover, core.acknowledge = self._inventory.recover, self._acknowledge

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
        timeout: float = 0.0,
    ) -> "Vault":
        """Make a vault in a new or empty folder and open it for writing.

        Args:
            keystore: keyfile, passphrase or keyring; fixed from now on.
            ask: gives the passphrase in passphrase mode.
            simulated: allow seeded run keys, and mark the vault for ever.
            files: the file layer; tests pass one that fails.
            timeout: seconds to wait for another program that makes a vault here.

        Raises:
            VaultExists: there is a vault already. Refused: the folder holds something else. VerificationFailed: a
            vault there lost its header. Busy, KeystoreError, StorageError, UsageError.
        """
        core = opening.make(
            Path(root),
            subject=subject,
            keystore=keystore,
            ask=ask,
            simulated=simulated,
            files=files,
            timeout=timeout,
        )
        return cls(core)

    @classmethod
    def open(
        cls,
        root: str | Path,
        *,
        subject: str,
        ask: Ask | None = None,
        write: bool = True,
        files: Files | None = None,
        timeout: float = 0.0,
    ) -> "Vault":
        """Open an existing vault; a writer also finishes what a crash left.

        Args:
            timeout: seconds that a writer waits for another one.

        Raises:
            NothingMatched: no vault here. Busy: another writer. KeystoreError: wrong passphrase or missing key.
            Refused: another subject's vault, or something in it that no store answers for.
            VerificationFailed: damaged, changed, incomplete, or older than what was acknowledged; nothing was changed.
            VersionMismatch: another format.
        """
        core = opening.unlock(Path(root), subject=subject, ask=ask, write=write, files=files, timeout=timeout)
        try:
            vault = cls(core)
            vault._start()
        except BaseException:
            core.close()
            raise
        return vault

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
        """Whether its run keys may come from a seed."""
        return self.core.simulated

    @property
    def generation(self) -> int:
        """One more after each erasure, by whichever process: ask between tokens."""
        return self.core.generation()

    def add_records(self, records: Sequence[NewRecord]) -> list[str]:
        """Add a batch, whole or not at all; the new ids in order."""
        return self._records.add(records)

    def records(self, topic: str | Everything | None) -> list[Record]:
        """Records of one topic, the shareable ones (None), or `ALL`, in the order they were added."""
        return self._records.select(topic)

    def records_by_id(self, ids: Collection[str]) -> list[Record]:
        """The records with these ids, in the order they were added. Raises NothingMatched for an unknown one."""
        return self._records.get(ids)

    def records_before(self, when: float, topic: str | Everything | None = ALL) -> frozenset[str]:
        """Ids of the records of a topic (or of all) that were added before `when`, in seconds since 1970."""
        mine = ids_of(self.core.table, topic)
        return frozenset(item for item, created in self._records.created().items() if created < when and item in mine)

    def keep(self, topic: str, days: float | None) -> None:
        """Set for how many days the records of a topic are kept; None: until somebody erases them.

        The rule is sealed, executed by an erasure of what is due, and erased with its topic. Raises UsageError.
        """
        with self.core.writing():
            keep(self.core.table, topic, days)

    def retention(self) -> dict[str, float]:
        """Topic -> days for which its records are kept, of the topics that have such a rule."""
        self.core.reading()
        return retention(self.core.table)

    def search(self, vector: Vector, k: int) -> list[tuple[Record, float]]:
        """The `k` records nearest to `vector` (float32 [dim]) by dot product, best first."""
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
        """Seal a run's rows as a block; its run key is destroyed before the block is visible."""
        return self._runs.finish(run, topic, release, rows, layers, width, d_model)

    def end_changed_runs(
        self, topic: str, release: str, plan: Mapping[str, Any], data_digest: str, record_ids: Sequence[str]
    ) -> bool:
        """Whether open runs had other data or another plan; they are ended as failed. See `runs.Runs.end_changed`."""
        return self._runs.end_changed(topic, release, plan, data_digest, record_ids)

    def save_checkpoint(self, run: TrainingRun, step: int, data: bytes) -> None:
        """Seal where an open run stands after `step` steps. Raises NothingMatched where it is not open."""
        self._runs.save(run, step, data)

    def checkpoint(self, run: TrainingRun) -> tuple[int, bytes] | None:
        """(step, data) that `save_checkpoint` sealed last for this run; None where there is none that is whole."""
        return self._runs.saved(run)

    def checkpoint_step(self, run: RunRecord) -> int:
        """After how many steps the run was saved last; 0 where it was not."""
        self.core.reading()
        return self._checkpoints.step(run.key_id)

    def runs(self, topic: str) -> list[RunRecord]:
        """The runs of a topic, wanted, open and ended ones, oldest first."""
        return self._runs.of(topic)

    def runs_by_id(self, ids: Collection[str]) -> list[RunRecord]:
        """Those of `ids` that are runs of this vault, oldest first."""
        return self._runs.get(ids)

    def plan_runs(self, wishes: Sequence[RunRecord], commit: Callable[[Session], None]) -> None:
        """Make wishes to train durable, together with what `commit` writes. See `runs.Runs.want`."""
        with self.core.writing():
            self._runs.want(wishes, commit)

    def drop_planned_runs(self, ids: Collection[str]) -> None:
        """Give up wishes that have not begun."""
        with self.core.writing():
            self._runs.drop_planned(ids)

    def fail_run(self, run: TrainingRun) -> None:
        """End a run without a block; it stays charged."""
        self._runs.fail(run)

    def end_run(self, run_id: str) -> None:
        """End an open run, by its id, without a block; it stays charged. One that has ended is left as it is."""
        self._runs.end(run_id)

    def blocks(self) -> list[BlockInfo]:
        """All blocks that exist, oldest first."""
        return self._blocks.visible()

    def blocks_of(self, topic: str) -> list[BlockInfo]:
        """The blocks of one topic, oldest first."""
        return self._blocks.of(topic)

    def block(self, id_or_topic: str) -> BlockInfo:
        """The block with this id, or the newest of this topic. Raises NothingMatched."""
        return self._blocks.get(id_or_topic)

    def block_rows(self, block_id: str) -> bytes:
        """The serialised rows of a block. Raises NothingMatched, VerificationFailed."""
        return self._blocks.rows(block_id)

    def register(self, store: ContentStore) -> None:
        """Add a store that holds content of this vault in memory: a search index, a KV cache, an optimiser.

        Raises Refused where it does not enumerate, erase and scan, or has the name of another store.
        """
        self.stores = sorted([*self.stores, checked(store, self.stores)], key=lambda known: known.order)

    def unfinished_erasures(self) -> list[str]:
        """Ids of erasures that have not ended; `fedmem.erasure.resume` finishes them."""
        return self._inventory.unfinished_erasures()

    def ids_of(self, topic: str | Everything | None) -> frozenset[str]:
        """Every id under which something of a topic (or of `ALL`) is stored: records, blocks, runs and their keys."""
        self.core.reading()
        return ids_of(self.core.table, topic)

    def close(self) -> None:
        """Close the vault; calling it twice is fine. In a forked child it leaves the parent's vault alone."""
        self.core.close()

    def __enter__(self) -> "Vault":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _acknowledge(self) -> None:
        """Note a durable change in the keystore: the ledger's head, table and database."""
        heads.note(self.core)
        acknowledgement.acknowledge(self.core)

    def _start(self) -> None:
        present = [path.name for path in self.root.iterdir() if not path.name.endswith(".tmp")]
        strangers = unclaimed(self.stores, [*present, *(f"table:{name}" for name in self.core.database.tables())])
        if strangers:
            raise Refused(
                f"The vault holds {len(strangers)} file(s) or table(s) that no content store answers for, so nothing "
                "could be erased with certainty. Move foreign files out of its folder."
            )
        if not FACTS.keys() <= self.core.table.facts.keys():
            if not self.core.write:
                raise VersionMismatch(
                    "This vault is of an earlier fedmem. Open it for writing once, which takes it up."
                )
            self._inventory.index(self._records)
        if self.core.write:
            self.core.recover()
            acknowledgement.acknowledge(self.core)
        else:
            self._take_lease()

    def _take_lease(self) -> None:
        """Mark this reader; what it read before the mark could be seen must still hold."""
        while True:
            lease = Lease(self.root / "leases", self.core.table.generation)
            try:
                if self.core.table.peek()[1] == self.core.table.generation:
                    self.core.lease = lease
                    return
                self.core.table.load()
            finally:
                if self.core.lease is not lease:
                    lease.release()
