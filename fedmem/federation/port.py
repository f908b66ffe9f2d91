"""The one opening between the Flower process and the vault process (DESIGN §10).

Invariants
- Through it come records that are already placed as shareable, and nothing else; out of it go approved fields only.
- Approval checks schema and clip norm again and enters an egress line before the fields may be sent.
- An `InprocPort` holds copies of public things: no path of attributes, containers or closures leads from it to a vault.

>>> import numpy as np
>>> from fedmem.federation.device_dp import DevicePlan
>>> plan = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> port = InprocPort(["a public text"], plan, {"w": (1,)})
>>> port.approve(wire.Fields({"w": np.zeros(1, np.int32)}), number=1).nbytes
4
>>> [(entry.number, entry.nbytes) for entry in port.egress]
[(1, 4)]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedmem.errors import BoundaryViolation
from fedmem.federation import fixedpoint, wire
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.wire import Fields, Shapes


@dataclass(frozen=True)
class EgressEntry:
    """One thing that left: message type, round, bytes and the digest of its fields. Never the content."""

    message: str
    number: int
    nbytes: int
    digest: str


class VaultPort(Protocol):
    """All that the Flower process may ask of the vault side."""

    def shareable(self) -> Sequence[str]:
        """Texts of records that policy and floor policy placed as shared."""
        ...

    def approve(self, fields: Fields, number: int) -> Fields:
        """Return `fields` for sending in round `number`, or raise BoundaryViolation."""
        ...


class InprocPort:
    """The port as an object that cannot reach the vault: it was given copies, and keeps no way back.

    `egress` is read by the side that made the port; the vault's own list of what left is filled from it.
    """

    __slots__ = ("_clip", "_records", "_schema", "egress")

    def __init__(self, records: Sequence[str], plan: DevicePlan, shapes: Shapes) -> None:
        self._records = tuple(records)
        self._clip = plan.clip
        self._schema = wire.anchor_reply(shapes, plan.clip)
        self.egress: list[EgressEntry] = []

    def shareable(self) -> Sequence[str]:
        """Texts of shareable records, as placed when the port was made."""
        return self._records

    def approve(self, fields: Fields, number: int) -> Fields:
        """Check and enter one reply.

        Guarantees: what is returned is exactly the reply schema, and its decoded norm is at most the clip norm.
        """
        wire.check(fields, self._schema)
        update = {name: array.view(np.int32) for name, array in fields.arrays.items()}
        clipped = fixedpoint.clip_grid(update, self._clip)
        if any((clipped[name] != update[name]).any() for name in update):
            raise BoundaryViolation("An update is longer than the plan's clip norm; it was not sent.")
        self.egress.append(EgressEntry(self._schema.message, number, fields.nbytes, fields.digest()))
        return fields
