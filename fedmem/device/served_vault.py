"""The vault of a running vault process: open for reading, and opened again after an erasure.

Invariants
- It returns records that were stored as shareable and that policy and floor policy place as shared now (I3).
- It closes the vault for an erasure at the next `renew`, so an erasure never waits for a federation.
- No result depends on private records: they are neither read nor counted (I1).
- Only one thread uses the vault at a time.

    with ServedVault(lambda: Vault.open(root, subject="ana", write=False), Policy.load()) as vault:
        texts, ids = vault.shareable()
"""

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from fedmem.device.account import Account, account_of
from fedmem.errors import Busy, KeystoreError
from fedmem.federation.connection import TICK
from fedmem.policy.policy import Policy
from fedmem.vault.store.core import StaleReader
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.vault import Vault

Result = TypeVar("Result")
PATIENCE = 20.0  # seconds that a request waits for an erasure; less than the other process waits for an answer
# Errors of a reader during an erasure, which destroys the key of the table.
_ERASED = (StaleReader, KeystoreError)


class ServedVault:
    """A vault that is open for reading while its device runs.

    Args:
        open_vault: opens the vault for reading; it is called again after an erasure.
        policy: places records each time they are requested.
        patience: seconds that a request waits for an erasure to end.

    Raises:
        FedmemError: any error of `open_vault`.
        VerificationFailed: the egress ledger was changed.
    """

    def __init__(self, open_vault: Callable[[], Vault], policy: Policy, patience: float = PATIENCE) -> None:
        self._open_vault, self._policy, self._patience = open_vault, policy, patience
        self._lock = threading.Lock()
        self._is_open, self._openings = False, 0
        self._open()

    def shareable(self) -> tuple[list[str], frozenset[str]]:
        """Return the texts of the shareable records in the order they were added, and the records' ids.

        Raises:
            Busy: an erasure takes longer than `patience`.
            VerificationFailed: the vault is damaged.
        """
        records = self._with_vault(lambda: self._vault.records(None))
        decisions = self._policy.place_many([record.text for record in records])
        shared = [r for r, decision in zip(records, decisions, strict=True) if decision.placement == "shared"]
        return [record.text for record in shared], frozenset(record.id for record in shared)

    def account(self) -> Account:
        """Return the account of this device over all its federations, with the limits of the policy.

        Raises:
            VerificationFailed: the egress ledger was changed, or this version does not know a spend.
            Busy: an erasure takes longer than `patience`.
        """
        return self._with_vault(lambda: account_of(self._egress, self._policy.federation))

    def enter(self, entry: EgressEntry) -> None:
        """Make an egress line durable.

        Args:
            entry: the line.

        Raises:
            StorageError: the disk failed.
            Busy: the vault was busy or closed for an erasure for longer than `patience`.
            VerificationFailed: the ledger was changed.
        """
        self._with_vault(lambda: self._egress.enter(entry))

    def settle(self) -> None:
        """Save the head of the egress ledger in the keystore, after an answer was sent."""
        with self._lock:
            if self._is_open:
                self._egress.settle()

    def renew(self) -> int:
        """Open the vault again if something was erased, and return how often it was opened so far.

        During an erasure the vault stays closed, and the next call tries again.
        """
        with self._lock:
            if not self._is_open or self._vault.generation != self._vault.core.table.generation:
                self._close()
                with contextlib.suppress(Busy, *_ERASED):
                    self._open()
            return self._openings

    def holds(self, ids: frozenset[str]) -> bool:
        """Return True if the vault still has all these shareable records.

        Args:
            ids: ids of records.

        Raises:
            FedmemError: any error of `shareable`.
        """
        return self._with_vault(lambda: ids <= self._vault.ids_of(None))

    def close(self) -> None:
        """Close the vault."""
        with self._lock:
            self._close()

    def _with_vault(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work` on the open vault; after an erasure, open it again and repeat `work`."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                with self._lock:
                    if not self._is_open:
                        raise Busy("The vault is closed for an erasure. Try again when it has ended.")
                    return work()
            except (Busy, *_ERASED):
                if time.monotonic() > deadline:
                    raise Busy("The vault was busy for too long; nothing was released. Try again.") from None
                time.sleep(TICK)
                self.renew()

    def _open(self) -> None:
        self._vault = self._open_vault()
        self._egress = EgressLog(self._vault.core)
        try:
            self._egress.entries()  # a damaged ledger is noticed here, before a peer trains for nothing
        except BaseException:
            self._vault.close()
            raise
        self._is_open, self._openings = True, self._openings + 1

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._vault.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
