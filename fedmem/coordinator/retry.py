"""Call Flower's Grid again after a transient error, with growing pauses, until a deadline.

Invariants
- Our own errors pass unchanged: they are decisions, not faults of a connection.
- Any other exception of Grid or SuperLink is logged by its class and tried again. At the deadline it becomes a
  RemoteError. Its text is not repeated: it may hold addresses and tokens.

>>> from fedmem.federation.clock import VirtualClock
>>> retry_until(lambda: [7], VirtualClock(), 60.0, "naming its nodes")
[7]
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from fedmem.errors import FedmemError, RemoteError
from fedmem.federation.clock import Clock

_log = logging.getLogger("fedmem.coordinator")
_Result = TypeVar("_Result")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two tries; doubled from try to try


def retry_until(call: Callable[[], _Result], clock: Clock, deadline: float, action: str) -> _Result:
    """Return what `call` returns, and call it again after an error until the deadline.

    Args:
        call: a call of Flower's Grid; it may be made several times.
        clock: gives the time and waits.
        deadline: time of the clock, in seconds, after which no further try begins.
        action: what Flower was asked for, as in "Flower failed at …".

    Raises:
        FedmemError: as `call` raised it.
        RemoteError: the last try failed at the deadline.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return call()
        except FedmemError:
            raise
        except Exception as error:  # noqa: BLE001  (Flower, gRPC and HTTP have no common class of errors)
            name = type(error).__name__
        if clock.now() + pause > deadline:
            raise RemoteError(f"Flower failed at {action} until the deadline ({name}). Look after the SuperLink.")
        _log.warning("Flower failed at %s (%s); trying again.", action, name)
        clock.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
