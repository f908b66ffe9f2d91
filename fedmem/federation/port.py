"""The interface between the network-facing process and the vault process (docs/design.md, §10).

Invariants
- The network-facing process gets records that are already placed as shareable, and nothing else. It sends approved
  fields only.
- A round is admitted before a device trains for it: by plan, policy and the device's account, all of them public facts.
- Approval checks schema and clip norm, and enters an egress line before the fields may be sent.
- Zeros need approval too. A device without approval sends nothing: `NoApproval` ends its process.

Implementations: `fedmem.device.inproc.InprocPort` in one process, `fedmem.federation.socket_port.SocketPort` in two.

>>> NoApproval().code
10
"""

from collections.abc import Sequence
from typing import Protocol

from fedmem.errors import RemoteError
from fedmem.federation.wire import Fields


class NoApproval(SystemExit):
    """The end of this process without an answer, with the exit code of RemoteError.

    It is a SystemExit and not an `Exception`: Flower would catch an exception and send its text, and a handler could
    answer without approval.

    Args:
        reason: the error because of which the port did not approve; it is not sent.
    """

    def __init__(self, reason: Exception | None = None) -> None:
        super().__init__(RemoteError.exit_code)
        self.reason = reason


class VaultPort(Protocol):
    """All requests that the network-facing process may make to the vault process."""

    def shareable(self) -> Sequence[str]:
        """Return the texts of records that policy and floor policy place as shared."""
        ...

    def admit(self, number: int) -> None:
        """Return if an update may leave in round `number`.

        Args:
            number: number of the round, from 1.

        Raises:
            BoundaryViolation: the plan has no such round.
            BudgetExceeded, Refused: the device's own budget or policy does not allow it.
        """
        ...

    def approve(self, fields: Fields, number: int) -> Fields:
        """Return `fields`, approved for round `number` (0: no round).

        Args:
            fields: the reply, an update in grid cells.
            number: number of the round; 0 for a reply to no round.

        Raises:
            BoundaryViolation: schema or clip norm do not allow the fields.
        """
        ...
