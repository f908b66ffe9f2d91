"""What left this device, as its owner sees it: every message that was released, with what it cost the device.

Invariants
- The ledger is checked whole whenever it is looked at; one that was edited or shortened is VerificationFailed.
- ε is computed from the round's public event when asked, and stored nowhere. It is that of one round, alone, against
  readers of released anchors; against the coordinator, which sees the update, it is infinite.

    | event | ε |
    |---|---|
    | a plan without noise, or no event | infinite |
    | an event of a mechanism that this version does not know | VerificationFailed |

    for message in client.egress.since(datetime(2026, 11, 1)):
        print(message.when, message.message, message.round, message.nbytes)
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from fedmem.privacy.accounting import epsilon_pld, epsilon_rdp
from fedmem.privacy.spend import MECHANISM, SpendEvent
from fedmem.storage.canonical import canonical_json
from fedmem.vault.store.egress_log import EgressLine
from fedmem.vault.store.egress_log import EgressLog as Ledger
from fedmem.vault.vault import Vault


@dataclass(frozen=True)
class SentMessage:
    """One message that left, or was about to when the device died.

    Attributes:
        when: with time zone UTC.
        round: number of the round; 0 where the request named none that could be read.
        nbytes, digest: size of the message's arrays, and SHA-256 of its fields, hex.
        run, plan: name of the federation's run, and digest of its plan.
        epsilon, delta: of this round alone, for the whole device, against readers of released anchors.
        chain: digest of the ledger's line; covers all lines up to it.
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
    """The egress ledger of a vault."""

    def __init__(self, vault: Vault) -> None:
        self._ledger = Ledger(vault.core)

    def since(self, when: datetime | None = None) -> list[SentMessage]:
        """What left at `when` (as the wall clock shows it, without a time zone) or later, oldest first; else all.

        Raises VerificationFailed.
        """
        first = -math.inf if when is None else when.timestamp()
        return [_sent(line) for line in self._ledger.entries() if line.when >= first]

    def complete(self) -> bool:
        """Whether no line is known to be missing: a vault restored from a backup lacks what left after that."""
        return self._ledger.complete()


def _sent(line: EgressLine) -> SentMessage:
    entry = line.entry
    named = entry.message, entry.number, entry.nbytes, entry.digest, entry.run, entry.plan
    epsilon = _epsilon(canonical_json(dict(entry.spend)), entry.delta)
    return SentMessage(datetime.fromtimestamp(line.when, UTC), *named, epsilon, entry.delta, line.chain)


@lru_cache
def _epsilon(event: bytes, delta: float) -> float:
    spend: Mapping[str, Any] = json.loads(event)
    if not spend:
        return math.inf
    if spend.get("mechanism") != MECHANISM and (fixed := _fixed(spend, delta)) is not None:
        return fixed
    accountant = epsilon_pld if find_spec("dp_accounting") else epsilon_rdp
    return accountant([SpendEvent.from_dict(spend)], delta)


def _fixed(spend: Mapping[str, Any], delta: float) -> float | None:
    """ε of a round with a cohort of fixed size; None for another mechanism."""
    from fedmem.federation import cohorts

    if spend.get("mechanism") != cohorts.MECHANISM:
        return None
    named = {name: spend[name] for name in ("population", "cohort", "noise_multiplier", "steps")}
    figure = cohorts.fixed_epsilon if find_spec("dp_accounting") else cohorts.fixed_epsilon_bound
    return figure(cohorts.FixedSpend(**named), delta)
