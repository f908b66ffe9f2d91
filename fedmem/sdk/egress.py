"""The messages that left this device, with their privacy cost for the device.

Invariants
- Every read checks the whole ledger. A ledger that was edited or shortened is VerificationFailed.
- ε is computed from the round's public event when it is asked for, and never stored.
- A line `join` of no bytes charges a plan that samples, before any message of it has left. Its ε is that of all rounds
  that it charges.
- ε of a message is the cost of its round alone, against readers of released anchors. Against the coordinator, which
  sees the update, it is infinite. `lifetime` composes all rounds of all federations.

    | event | ε |
    |---|---|
    | a plan without noise, or no event | infinite |
    | an event with a mechanism that this version does not know | VerificationFailed |

    for message in client.egress.since(datetime(2026, 11, 1)):
        print(message.when, message.message, message.round, message.nbytes)
"""

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache

from fedmem.device.account import JOINED, account_of
from fedmem.federation import composition
from fedmem.policy.policy import FederationLimits
from fedmem.privacy.statement import LifetimeSpent
from fedmem.storage.canonical import canonical_json
from fedmem.vault.store.egress_log import EgressLine
from fedmem.vault.store.egress_log import EgressLog as Ledger
from fedmem.vault.vault import Vault

__all__ = ["Egress", "SentMessage"]


@dataclass(frozen=True)
class SentMessage:
    """A message that left the device, or that was about to leave when the device stopped.

    Attributes:
        when: Time of the message, in UTC.
        message: Type of the message.
        round: Number of the round, or 0 if the request named no valid round.
        nbytes: Size of the message's arrays, in bytes.
        digest: SHA-256 of the message's fields, hexadecimal.
        run: Name of the federation's run.
        plan: Digest of the run's plan.
        epsilon: ε of this round alone, for the whole device, against readers of released anchors.
        delta: δ of this round.
        chain: Digest of the ledger's line. It covers all lines up to this one.
    """

    when: datetime
    message: str
    round: int
    nbytes: int
    digest: str
    run: str
    plan: str
    epsilon: float
    delta: float
    chain: str


class Egress:
    """The egress ledger of a vault.

    Args:
        vault: The open vault.
    """

    def __init__(self, vault: Vault) -> None:
        self._ledger = Ledger(vault.core)

    def since(self, when: datetime | None = None) -> list[SentMessage]:
        """Return the messages that left at `when` or later, oldest first.

        Args:
            when: A time. Without a time zone it is local time. None returns all messages.

        Raises:
            VerificationFailed: The ledger was edited or shortened, or an event has an unknown mechanism.
        """
        first = -math.inf if when is None else when.timestamp()
        return [_sent(line) for line in self._ledger.entries() if line.when >= first]

    def lifetime(self, limits: FederationLimits | None = None) -> LifetimeSpent:
        """Return the account of the device over all its federations (`fedmem.device.account`).

        Args:
            limits: The limits of a policy, as `Policy.load(name).federation`. None takes those of the floor policy.

        Raises:
            VerificationFailed: The ledger was edited or shortened, or an event has an unknown mechanism.
        """
        return account_of(self._ledger, limits or FederationLimits()).spent()

    def complete(self) -> bool:
        """Return False if the vault was restored from a backup: messages that left after the backup are missing."""
        return self._ledger.complete()


def _sent(line: EgressLine) -> SentMessage:
    entry = line.entry
    fields = entry.message, entry.number, entry.nbytes, entry.digest, entry.run, entry.plan
    rounds = entry.rounds or 1 if entry.message == JOINED else 1
    epsilon = _epsilon(canonical_json(dict(entry.spend)), rounds, entry.delta)
    return SentMessage(datetime.fromtimestamp(line.when, UTC), *fields, epsilon, entry.delta, line.chain)


@lru_cache
def _epsilon(event: bytes, rounds: int, delta: float) -> float:
    values = json.loads(event)
    if not values:
        return math.inf
    spend = composition.spend_from(values)
    return composition.epsilon([replace(spend, steps=rounds * spend.steps)], delta)
