"""The description of one message that is about to leave a device, as the egress ledger stores it.

Invariants
- It holds public facts of a message and none of its content; see `fedmem.vault.store.egress_log`.
- This module loads no other module of the vault: the network-facing process describes its messages too.

>>> EgressEntry("train.anchor", 3, 4096, "00" * 32).number
3
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EgressEntry:
    """The public facts of one message that is about to leave.

    Attributes:
        message: name of the message in the wire schema.
        number: the round; 0 if the request had no readable round.
        nbytes: bytes of the message's arrays.
        digest: SHA-256 of its fields, hex.
        run: id of the federation's run.
        plan: digest of the plan that the device follows.
        spend: the round's privacy event, as ledgers hold it; empty if it is not known.
        delta: the δ for the ε of `spend`; 0 if it is not known.
        rounds: rounds of the plan that the device's account is charged: 1 for this round alone; all rounds that the
            account grants where the plan samples, on each of its lines and charged once; 0 for zeros that follow from
            public facts. None in a line of an earlier version.
    """

    message: str
    number: int
    nbytes: int
    digest: str
    run: str = ""
    plan: str = ""
    spend: Mapping[str, Any] = field(default_factory=dict)
    delta: float = 0.0
    rounds: int | None = None
