"""A virtual clock is moved by sleep alone; the machine's clock never goes back."""

import time

import pytest

from fedmem.federation.clock import VirtualClock, WallClock


def test_a_virtual_clock_adds_up_its_sleeps_and_takes_no_time() -> None:
    clock, start = VirtualClock(), time.monotonic()
    assert clock.now() == 0.0
    for seconds in (3600.0, 0.0, 0.5):
        clock.sleep(seconds)
    assert clock.now() == 3600.5
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("seconds", [-1.0, -1e9, -0.0])
def test_a_virtual_clock_does_not_go_back(seconds: float) -> None:
    clock = VirtualClock()
    clock.sleep(2.0)
    clock.sleep(seconds)
    assert clock.now() == 2.0


def test_a_wall_clock_is_not_moved_by_the_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock()
    start = clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    clock.sleep(0.002)
    assert 0.002 <= clock.now() - start < 60
