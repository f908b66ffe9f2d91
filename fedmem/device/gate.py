"""Check in the vault process that an answer may leave the device: schema, clip norm, egress line, in this order.

Invariants
- A released answer is exactly the reply schema, and its decoded norm is at most the plan's clip norm. The gate refuses
  an answer; it never corrects one.
- The egress line is durable before `release` returns. If it cannot be entered, nothing is returned.
- Terms are public, equal for every device of a run, and never a function of the content of the vault.

>>> import numpy as np
>>> from fedmem.federation.device_dp import DevicePlan
>>> plan, lines = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example"), []
>>> gate = Gate(Terms(plan, {"w": (1,)}), lines.append)
>>> gate.release(wire.Fields({"w": np.zeros(1, np.int32)}), number=1).nbytes
4
>>> [(entry.message, entry.number, entry.nbytes) for entry in lines]
[('train.anchor', 1, 4)]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmem.errors import BoundaryViolation
from fedmem.federation import device_dp, fixedpoint, wire
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
        schema: the reply schema, computed from the terms.
    """

    terms: Terms
    enter: Callable[[EgressEntry], object]
    schema: Schema = field(init=False)
    _entry_facts: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        plan = self.terms.plan
        # A plan that claims no ε has no event to compute one from.
        spend = {} if plan.unsafe_no_dp else device_dp.spend(plan, rounds=1).to_dict()
        object.__setattr__(self, "schema", wire.anchor_reply(self.terms.shapes, plan.clip))
        facts = {"run": plan.run, "plan": plan.digest(), "spend": spend, "delta": plan.delta}
        object.__setattr__(self, "_entry_facts", facts)

    def release(self, fields: Fields, number: int) -> Fields:
        """Check `fields`, enter them in the egress ledger as the answer of round `number`, and return them.

        Args:
            number: the round, from 1 to `MAX_ROUND`; 0 for an answer to no round.

        Guarantees: the returned fields are exactly the reply schema, their decoded norm is at most the clip norm, and
        their egress line is durable.

        Raises BoundaryViolation as the table says, and what `enter` raises. In both cases nothing may leave.

        | fields | result |
        |---|---|
        | zeros | entered and returned, as other answers |
        | other fields than the reply schema, or a round out of range | BoundaryViolation |
        | not all zeros, in a round after the plan's last | BoundaryViolation |
        | norm slightly above the clip norm | BoundaryViolation; decided in integers |
        """
        if not 0 <= number <= MAX_ROUND:
            raise BoundaryViolation("An answer names an impossible round; it was not sent.")
        wire.check(fields, self.schema)
        if number > self.terms.plan.rounds and any(array.any() for array in fields.arrays.values()):
            raise BoundaryViolation(
                "The plan allows no such round, so only zeros may be sent for it; the update was not sent."
            )
        update = {name: array.view(np.int32) for name, array in fields.arrays.items()}
        clipped = fixedpoint.clip_grid(update, self.terms.plan.clip)
        # `clip_grid` returns the same array object for an update that fits: it need not be compared.
        if any(clipped[n] is not part and bool((clipped[n] != part).any()) for n, part in update.items()):
            raise BoundaryViolation("The norm of an update is above the plan's clip norm; it was not sent.")
        self.enter(EgressEntry(self.schema.message, number, fields.nbytes, fields.digest(), **self._entry_facts))
        return fields
