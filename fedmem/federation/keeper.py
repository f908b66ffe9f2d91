"""The vault as the vault process of a device holds it: open for reading, and open again after an erasure.

Invariants
- It hands out records that were stored as shareable and that policy and floor policy place as shared now (I3).
- An erasure is given way to at the next look, so that it never waits for a federation; one that takes a record which
  was handed out is told as Refused, for then the process that got it must end.
- Nothing here depends on private records: what is private is neither read nor counted (I1).

    with Keeper(lambda: Vault.open(root, subject="ana", write=False), Policy.load()) as keeper:
        keeper.texts()
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from fedmem.errors import Busy, KeystoreError, Refused
from fedmem.federation.pipe import PATIENCE, TICK
from fedmem.policy.policy import Policy
from fedmem.vault.core import StaleReader
from fedmem.vault.egress import Egress
from fedmem.vault.leaving import EgressEntry
from fedmem.vault.vault import Vault

Result = TypeVar("Result")
# An erasure destroys the key of the table that a reader has just begun to read.
_ERASED = (StaleReader, KeystoreError)


class Keeper:
    """The vault as this process holds it: open for reading, opened again after an erasure.

    `opened` opens it for reading. Raises what that raises.
    """

    def __init__(self, opened: Callable[[], Vault], policy: Policy, patience: float = PATIENCE) -> None:
        self._opened, self._policy, self._patience = opened, policy, patience
        self._handed: frozenset[str] = frozenset()
        self._take()

    def _take(self) -> None:
        self._vault = self._opened()
        self._egress = Egress(self._vault.core)
        try:
            self._egress.entries()  # checked before anything is trained: what cannot be entered need not be made
        except BaseException:
            self._vault.close()
            raise

    def texts(self) -> list[str]:
        """Texts of the shareable records, in the order they were added."""
        records = self._awake(lambda: self._vault.records(None))
        decisions = self._policy.place_many([record.text for record in records])
        chosen = [r for r, decision in zip(records, decisions, strict=True) if decision.placement == "shared"]
        self._handed = frozenset(record.id for record in chosen)
        return [record.text for record in chosen]

    def enter(self, entry: EgressEntry) -> None:
        """Make an egress line durable. Raises StorageError, Busy, VerificationFailed, Refused."""
        self._awake(lambda: self._egress.enter(entry))

    def settle(self) -> None:
        """Note the ledger's head, when the answer is out."""
        self._egress.settle()

    def look(self) -> None:
        """Let go of the vault where something was erased, and take it again. Raises Refused where what was handed out
        was erased too."""
        held = self._vault.core.table.generation
        if self._vault.generation == held:
            return
        self._vault.close()
        self._retake()
        if not self._handed <= self._vault.ids_of(None):
            raise Refused("A shared record was erased, so the device's processes let go of it. Start the device anew.")

    def _awake(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, on the vault as it is now: an erasure may have come since the last look."""
        try:
            return work()
        except _ERASED:
            self.look()
            return work()

    def _retake(self) -> None:
        limit = time.monotonic() + self._patience
        while True:
            try:
                return self._take()
            except (Busy, *_ERASED):  # it is not over yet
                if time.monotonic() > limit:
                    raise
                time.sleep(TICK)

    def close(self) -> None:
        """Close the vault."""
        self._vault.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
