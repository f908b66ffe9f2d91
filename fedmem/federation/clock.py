"""Clocks for the loop around the state machine, which gets the time as its argument `now` (I9).

Invariants
- A virtual clock advances by `sleep` only, so the deadlines of a simulation do not depend on the machine.
- Neither clock goes backwards.

>>> clock = VirtualClock()
>>> clock.sleep(2.5)
>>> clock.now()
2.5
"""

import time
from typing import Protocol


class Clock(Protocol):
    """A clock: `now` in seconds since a fixed moment, and `sleep` to wait."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Return seconds. They increase even when the wall clock is set back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`.

        Args:
            seconds: 0 or more.
        """
        time.sleep(seconds)


class VirtualClock:
    """A clock that starts at 0 and advances by `sleep`."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Return the virtual seconds since the start."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Advance the clock by `seconds` without waiting; a negative number counts as 0.

        Args:
            seconds: the virtual time that passes.
        """
        self._now += max(0.0, seconds)
