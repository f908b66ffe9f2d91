"""The interface between the network-facing process and the vault process (docs/design.md, §10).

Invariants
- Records come in that are already placed as shareable, and nothing else; approved fields go out.
- Approval checks schema and clip norm and enters an egress line before the fields may be sent.
- A device that has no approval, not even for zeros, sends nothing: `NoApproval` ends its process.

Implementations: `fedmem.device.inproc.InprocPort` in one process, `fedmem.federation.socket_port.SocketPort` in two.

>>> NoApproval().code
10
"""

from collections.abc import Sequence
from typing import Protocol

from fedmem.errors import RemoteError
from fedmem.federation.wire import Fields


class NoApproval(SystemExit):
    """End this process without an answer, with the exit code of RemoteError.

    It is no `Exception`: Flower would catch one and send its text, and a handler might answer in the vault's place.
    """

    def __init__(self, reason: Exception | None = None) -> None:
        super().__init__(RemoteError.exit_code)
        self.reason = reason


class VaultPort(Protocol):
    """All requests that the network-facing process may make to the vault process."""

    def shareable(self) -> Sequence[str]:
        """Return the texts of records that policy and floor policy place as shared."""
        ...

    def approve(self, fields: Fields, number: int) -> Fields:
        """Return `fields` for sending in round `number`. Raises BoundaryViolation where they may not leave."""
        ...
