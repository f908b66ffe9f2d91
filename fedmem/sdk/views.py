"""What a client shows and does to its vault: blocks, erasure, privacy spent. The command line calls the same.

Invariants
- An erasure is planned first, without side effect, and executed with the digest of that plan.
- `execute` runs, verifies by rescan and gives the receipt; a partial or unverified one is an error, never a result.
- ε is computed from the ledger when asked, and stored nowhere.

    planned = client.erase.plan(topic="health")
    print(planned.counts)
    print(planned.execute().receipt_path)
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

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


class Erase:
    """Erasures of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
