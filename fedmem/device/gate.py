"""Check in the vault process that an answer may leave the device: schema, plan, clip norm, egress line, in this order.

Invariants
- A released answer is exactly the reply schema, and its decoded norm is at most the plan's clip norm. The gate refuses
  an answer; it never corrects one.
- An update leaves only in a round of the plan that the device's account grants, and one answer a round. Zeros may leave
  always: they are how every refusal looks from outside (I1).
- The egress line is durable before `release` returns. If it cannot be entered, nothing is returned.
- Terms are public, equal for every device of a run, and never a function of the content of the vault.

>>> import numpy as np
>>> from fedmem.federation.device_dp import DevicePlan
>>> plan, lines = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example"), []
>>> gate = Gate(Terms(plan, {"w": (1,)}), lines.append)
>>> gate.release(wire.Fields({"w": np.zeros(1, np.int32)}), number=1).nbytes
4
>>> [(entry.message, entry.number, entry.nbytes, entry.rounds) for entry in lines]
[('train.anchor', 1, 4, 1)]
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmem.device.account import UNLIMITED, Account, entry_facts
from fedmem.errors import BoundaryViolation
from fedmem.federation import fixedpoint, wire
from fedmem.federation.terms import Terms
from fedmem.federation.wire import Fields, Schema
from fedmem.vault.store.egress_entry import EgressEntry

MAX_ROUND = 10**6


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate for the answers of one device in one run.

    Attributes:
        terms: plan and shapes of the run.
        enter: makes an egress line durable, or raises.
        account: the account of the device over all its federations; by default one without limits and lines.
        schema: the reply schema, computed from the terms.
    """

    terms: Terms
    enter: Callable[[EgressEntry], object]
    account: Account = field(default_factory=lambda: Account(UNLIMITED))
    schema: Schema = field(init=False)
    _entry_facts: Mapping[str, Any] = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", wire.anchor_reply(self.terms.shapes, self.terms.plan.clip))
        object.__setattr__(self, "_entry_facts", entry_facts(self.terms.plan))

    def admit(self, number: int) -> None:
        """Return if an update may leave in round `number`. It is asked before a training, and again by `release`.

        Args:
            number: number of the round, from 1.

        Raises:
            BoundaryViolation: the plan has no such round.
            BudgetExceeded: the account does not grant the round.
            Refused: the policy does not allow the plan.
        """
        with self._lock:
            self.account.admit(self.terms.plan, number)

    def release(self, fields: Fields, number: int) -> Fields:
        """Check `fields`, enter them in the egress ledger as the answer of round `number`, and return them.

        Args:
            number: the round, from 1 to `MAX_ROUND`; 0 for an answer to no round.

        Guarantees: the returned fields are exactly the reply schema, their decoded norm is at most the clip norm, and
        their egress line with the charge of the account is durable.

        | fields | result |
        |---|---|
        | zeros | entered and returned, as other answers |
        | other fields than the reply schema, or a round out of range | BoundaryViolation |
        | not all zeros, in no round of the plan | BoundaryViolation |
        | not all zeros, in a round that got another answer | BoundaryViolation; the same answer may be repeated |
        | norm slightly above the clip norm | BoundaryViolation; decided in integers |

        Raises:
            BoundaryViolation: as the table says. Whatever is raised, nothing may leave.
            BudgetExceeded, Refused: as `admit`, for an update.
            FedmemError: any error of `enter`.
        """
        if not 0 <= number <= MAX_ROUND:
            raise BoundaryViolation("An answer names an impossible round; it was not sent.")
        wire.check(fields, self.schema)
        self._check_norm(fields)
        is_update, digest = any(array.any() for array in fields.arrays.values()), fields.digest()
        with self._lock:  # between the check of the account and its new line, no other answer is checked
            if is_update:
                self.account.admit_answer(self.terms.plan, number, digest)
            rounds = self.account.charge(self.terms.plan, number)
            entry = EgressEntry(self.schema.message, number, fields.nbytes, digest, rounds=rounds, **self._entry_facts)
            self.enter(entry)
            self.account.add(entry)
        return fields

    def _check_norm(self, fields: Fields) -> None:
        update = {name: array.view(np.int32) for name, array in fields.arrays.items()}
        clipped = fixedpoint.clip_grid(update, self.terms.plan.clip)
        # `clip_grid` returns the same array object for an update that fits: it need not be compared.
        if any(clipped[n] is not part and bool((clipped[n] != part).any()) for n, part in update.items()):
            raise BoundaryViolation("The norm of an update is above the plan's clip norm; it was not sent.")
