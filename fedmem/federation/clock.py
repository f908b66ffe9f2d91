"""Time as an argument: the state machine gets `now`, and only the loop around it asks a clock (I9).

Invariants
- A virtual clock moves when somebody sleeps on it, and never otherwise: deadlines of a simulation do not depend on
  the machine.
- Neither clock goes backwards.

>>> clock = VirtualClock()
>>> clock.sleep(2.5)
>>> clock.now()
2.5
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some moment, and a way to let them pass."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds; they count on when the wall clock is set back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        time.sleep(seconds)


class VirtualClock:
    """A clock that starts at 0 and moves by what is slept."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self._now += max(0.0, seconds)
