"""One message that is about to leave a device, as the egress ledger names it.

Invariants
- It says what a message is, never what it says; every field is public, see `fedmem.vault.store.egress_log`.
- It loads nothing: the Flower process names its messages too, and holds no code of the vault.

>>> EgressEntry("train.anchor", 3, 4096, "00" * 32).number
3
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EgressEntry:
    """One message about to leave: what it is, never what it says.

    Attributes:
        number: the round; 0 where the request named none that could be read.
        nbytes: bytes of the message's arrays.
        digest: SHA-256 of its fields, hex.
        run, plan: id of the federation's run, and digest of the plan it holds to.
        spend, delta: the round's privacy event as ledgers hold it, and the δ for its ε; empty where unknown.
    """

    message: str
    number: int
    nbytes: int
    digest: str
    run: str = ""
    plan: str = ""
    spend: Mapping[str, Any] = field(default_factory=dict)
    delta: float = 0.0
