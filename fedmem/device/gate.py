"""The check, on the vault's side, that an answer may leave: schema, clip norm, egress line, in this order.

Invariants
- What passes is exactly the reply schema, and its decoded norm is at most the plan's clip norm; nothing is mended here.
- The egress line is entered, durably, before `release` returns; where it cannot be entered, nothing is returned.
- Terms are public, equal for every device of a run, and never a function of what the vault holds.

>>> import numpy as np
>>> from fedmem.federation.device_dp import DevicePlan
>>> plan, entered = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example"), []
>>> gate = Gate(Terms(plan, {"w": (1,)}), entered.append)
>>> gate.release(wire.Fields({"w": np.zeros(1, np.int32)}), number=1).nbytes
4
>>> [(entry.message, entry.number, entry.nbytes) for entry in entered]
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
    """Releases the answers of one device in one run; `enter` makes an egress line durable or raises."""

    terms: Terms
    enter: Callable[[EgressEntry], object]
    schema: Schema = field(init=False)
    _known: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        plan = self.terms.plan
        # A plan that claims no ε has no event to compute one from.
        spend = {} if plan.unsafe_no_dp else device_dp.spend(plan, rounds=1).to_dict()
        object.__setattr__(self, "schema", wire.anchor_reply(self.terms.shapes, plan.clip))
        known = {"run": plan.run, "plan": plan.digest(), "spend": spend, "delta": plan.delta}
        object.__setattr__(self, "_known", known)

    def release(self, fields: Fields, number: int) -> Fields:
        """Return `fields` once they are entered as what left in round `number`.

        Raises BoundaryViolation for anything but the reply schema within the clip norm, and what `enter` raises: then
        nothing may leave.

        | fields | result |
        |---|---|
        | zeros | entered and returned, as any other |
        | anything but zeros, in a round after the plan's last | BoundaryViolation |
        | norm a hair above the clip norm | BoundaryViolation; decided in integers |
        """
        if not 0 <= number <= MAX_ROUND:
            raise BoundaryViolation("An answer names a round that no request has; it was not sent.")
        wire.check(fields, self.schema)
        if number > self.terms.plan.rounds and any(array.any() for array in fields.arrays.values()):
            raise BoundaryViolation("The plan allows no such round, so only zeros may answer it; it was not sent.")
        update = {name: array.view(np.int32) for name, array in fields.arrays.items()}
        clipped = fixedpoint.clip_grid(update, self.terms.plan.clip)
        # A part that fits comes back as the very same array, and need not be compared.
        if any(clipped[n] is not part and bool((clipped[n] != part).any()) for n, part in update.items()):
            raise BoundaryViolation("An update is longer than the plan's clip norm; it was not sent.")
        self.enter(EgressEntry(self.schema.message, number, fields.nbytes, fields.digest(), **self._known))
        return fields
