"""What a client shows and does to its vault: blocks, erasure, privacy spent. The command line calls the same.

Invariants
- An erasure is planned first, without side effect, and executed with the digest of that plan.
- `execute` runs, verifies by rescan and gives the receipt; a partial or unverified one is an error, never a result.
- ε is computed from the ledger when asked, and stored nowhere.

    planned = client.erase.plan(topic="health")
    print(planned.counts)
    print(planned.execute().receipt)
"""

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fedmem import erasure
from fedmem.errors import UsageError, VerificationFailed
from fedmem.privacy.accounting import epsilon_rdp
from fedmem.privacy.ledger import block_epsilon, charges, subject_epsilon
from fedmem.privacy.plan import DELTA
from fedmem.privacy.spend import SpendEvent
from fedmem.vault.vault import BlockInfo, Vault


class Blocks:
    """The private blocks of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def list(self) -> list[BlockInfo]:
        """All blocks, every version."""
        return self._vault.blocks()

    def get(self, id_or_topic: str) -> BlockInfo:
        """One block. Raises NothingMatched."""
        return self._vault.block(id_or_topic)


@dataclass(frozen=True)
class Spent:
    """One training run in the ledger; `topic` is None where its block was erased or never finished."""

    run: str
    block: str
    topic: str | None
    epsilon: float


@dataclass(frozen=True)
class Budget:
    """What a vault spent: `epsilon` bounds every record, present or erased; `runs` are the parts, each alone."""

    epsilon: float
    delta: float
    accountant: Literal["pld", "rdp"]
    runs: list[Spent]


class Privacy:
    """The privacy ledger of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def budget(self) -> Budget:
        """ε so far at δ = 1e-5, by PLD; where `dp-accounting` is not installed by RDP, a greater upper bound.

        Raises VerificationFailed where the ledger's chain does not hold. 0 for an empty ledger, infinite without noise.
        """
        events = self._vault.ledger.events()
        topics = {block.id: block.topic for block in self._vault.blocks()}
        tight = find_spec("dp_accounting") is not None

        def alone(block: str, spend: SpendEvent) -> float:
            return block_epsilon(events, block) if tight else epsilon_rdp([spend], DELTA)

        found = charges(events)
        runs = [Spent(c.run, c.block, topics.get(c.block), alone(c.block, c.spend)) for c in found]
        whole = subject_epsilon(events) if tight else epsilon_rdp([charge.spend for charge in found], DELTA)
        return Budget(whole, DELTA, "pld" if tight else "rdp", runs)


@dataclass(frozen=True)
class Erased:
    """A finished and verified erasure.

    Attributes:
        receipt: the signed receipt file; `device.pub` beside it in the vault checks it.
        items: store -> number of items that it let go.
        not_covered: what the erasure cannot reach.
        opening: hex; opens the receipt's commitment to the scope. Kept nowhere else.
    """

    id: str
    state: str
    receipt: Path
    verified: bool
    counts: dict[str, int]
    items: dict[str, int]
    not_covered: list[str]
    opening: str


class PlannedErasure:
    """What an erasure would destroy; nothing happens before `execute`."""

    def __init__(self, vault: Vault, plan: erasure.Plan) -> None:
        self._vault, self._plan = vault, plan
        self.digest = plan.digest
        self.counts = plan.counts
        self.items = dict(Counter(item.store for item in plan.items))

    def execute(self) -> Erased:
        """Destroy, rescan, check the receipt. Raises PartialErasure, VerificationFailed, Refused, StorageError."""
        outcome = erasure.execute(self._vault, self._plan, self.digest)
        if not erasure.verify(self._vault, outcome.id).clean:
            raise VerificationFailed(f"Erasure {outcome.id} ran, but a rescan finds something. `fedmem erase status`.")
        key = (self._vault.root / "device.pub").read_bytes()
        statement = erasure.receipt.verify(outcome.receipt_path.read_bytes(), key)
        not_covered = [str(line) for line in statement["predicate"]["not_covered"]]
        receipt, opening = outcome.receipt_path, outcome.opening
        return Erased(outcome.id, outcome.state, receipt, True, self.counts, self.items, not_covered, opening)


class Erase:
    """Erasures of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def plan(self, *, block: str | None = None, topic: str | None = None, everything: bool = False) -> PlannedErasure:
        """Plan the erasure of one scope: a block (id or topic), a topic, or everything of this subject.

        A block goes with every version of it, and with its topic's records, vectors and run keys.
        Raises UsageError unless exactly one scope is named, NothingMatched where the vault holds nothing of it.
        """
        scopes = [erasure.Scope.block(block)] if block is not None else []
        scopes += [erasure.Scope.topic(topic)] if topic is not None else []
        scopes += [erasure.Scope.everything()] if everything else []
        if len(scopes) != 1:
            raise UsageError("Name one scope to erase: block=…, topic=…, or everything=True.")
        return PlannedErasure(self._vault, erasure.plan(self._vault, scopes[0]))

    def status(self) -> list[erasure.Status]:
        """Every erasure of the vault, oldest first."""
        return erasure.status(self._vault)

    def resume(self) -> list[erasure.Outcome]:
        """Finish what was left unfinished. Raises PartialErasure where it still cannot."""
        return erasure.resume(self._vault)
