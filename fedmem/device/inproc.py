"""The vault port as an object in one process, for simulations and tests.

Invariants
- It holds copies of public things: no path of attributes, containers or closures leads from it to a vault.
- It approves through the same gate as the vault process.

>>> import numpy as np
>>> plan = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> port = InprocPort(["a public text"], plan, {"w": (1,)})
>>> port.approve(Fields({"w": np.zeros(1, np.int32)}), number=1).nbytes
4
>>> [(entry.number, entry.nbytes) for entry in port.egress]
[(1, 4)]
"""

from collections.abc import Sequence

from fedmem.device.gate import Gate
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.terms import Terms
from fedmem.federation.wire import Fields, Shapes
from fedmem.vault.store.egress_entry import EgressEntry


class InprocPort:
    """A `VaultPort` that cannot reach the vault: it gets copies and keeps no reference.

    `egress` is read by the side that made the port, which fills the vault's ledger from it.
    """

    __slots__ = ("_gate", "_records", "egress")

    def __init__(self, records: Sequence[str], plan: DevicePlan, shapes: Shapes) -> None:
        self._records = tuple(records)
        self.egress: list[EgressEntry] = []
        self._gate = Gate(Terms(plan, shapes), self.egress.append)

    def shareable(self) -> Sequence[str]:
        """Return the texts of shareable records, as placed when the port was made."""
        return self._records

    def approve(self, fields: Fields, number: int) -> Fields:
        """Check and enter one reply.

        Guarantees: what is returned is exactly the reply schema, and its decoded norm is at most the clip norm.
        """
        return self._gate.release(fields, number)
