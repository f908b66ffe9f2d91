"""The one opening between the Flower process and the vault process (docs/design.md, §10).

Invariants
- Through it come records that are already placed as shareable, and nothing else; out of it go approved fields only.
- Approval checks schema and clip norm again and enters an egress line before the fields may be sent.
- An `InprocPort` holds copies of public things: no path of attributes, containers or closures leads from it to a vault.

The same interface over a pipe, with the vault in a process of its own, is `fedmem.federation.pipe_port`.

>>> import numpy as np
>>> from fedmem.federation.device_dp import DevicePlan
>>> plan = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> port = InprocPort(["a public text"], plan, {"w": (1,)})
>>> port.approve(Fields({"w": np.zeros(1, np.int32)}), number=1).nbytes
4
>>> [(entry.number, entry.nbytes) for entry in port.egress]
[(1, 4)]
"""

from collections.abc import Sequence
from typing import Protocol

from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.gate import Gate, Terms
from fedmem.federation.wire import Fields, Shapes
from fedmem.vault.leaving import EgressEntry

__all__ = ["EgressEntry", "InprocPort", "VaultPort"]


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

    __slots__ = ("_gate", "_records", "egress")

    def __init__(self, records: Sequence[str], plan: DevicePlan, shapes: Shapes) -> None:
        self._records = tuple(records)
        self.egress: list[EgressEntry] = []
        self._gate = Gate(Terms(plan, shapes), self.egress.append)

    def shareable(self) -> Sequence[str]:
        """Texts of shareable records, as placed when the port was made."""
        return self._records

    def approve(self, fields: Fields, number: int) -> Fields:
        """Check and enter one reply.

        Guarantees: what is returned is exactly the reply schema, and its decoded norm is at most the clip norm.
        """
        return self._gate.release(fields, number)
