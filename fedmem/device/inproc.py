"""A vault port within one process, for simulations and tests.

Invariants
- It holds copies of public values. No chain of attributes, containers or closures leads from it to a vault.
- It approves answers by the same gate as the vault process.

>>> import numpy as np
>>> plan = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="an example")
>>> port = InprocPort(["a public text"], plan, {"w": (1,)})
>>> port.approve(Fields({"w": np.zeros(1, np.int32)}), number=1).nbytes
4
>>> [(entry.number, entry.nbytes) for entry in port.egress]
[(1, 4)]
"""

from collections.abc import Sequence

from fedmem.device.account import UNLIMITED, Account
from fedmem.device.gate import Gate
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.terms import Terms
from fedmem.federation.wire import Fields, Shapes
from fedmem.vault.store.egress_entry import EgressEntry


class InprocPort:
    """A `VaultPort` without access to a vault: it gets copies and keeps no reference.

    Args:
        records: texts of the shareable records.
        plan, shapes: the terms of the run.
        account: the account of the device; by default one without limits and lines.

    Attributes:
        egress: the egress entries so far. The creator of the port copies them into the vault's egress ledger.
    """

    __slots__ = ("_gate", "_records", "egress")

    def __init__(
        self, records: Sequence[str], plan: DevicePlan, shapes: Shapes, account: Account | None = None
    ) -> None:
        self._records = tuple(records)
        self.egress: list[EgressEntry] = []
        self._gate = Gate(Terms(plan, shapes), self.egress.append, account or Account(UNLIMITED))

    def shareable(self) -> Sequence[str]:
        """Return the texts of the shareable records, as they were placed when the port was made."""
        return self._records

    def admit(self, number: int) -> None:
        """Return if an update may leave in round `number`.

        Args:
            number: number of the round, from 1.

        Raises:
            BoundaryViolation, BudgetExceeded, Refused: as `Gate.admit`.
        """
        self._gate.admit(number)

    def approve(self, fields: Fields, number: int) -> Fields:
        """Check the reply of round `number`, enter its egress line, and return the reply.

        Guarantees: the returned fields are exactly the reply schema, and their decoded norm is at most the clip norm.

        Args:
            fields: the reply.
            number: number of the round; 0 for an answer to no round.

        Raises:
            BoundaryViolation, BudgetExceeded, Refused: as `Gate.release`.
        """
        return self._gate.release(fields, number)
