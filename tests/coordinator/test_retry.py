"""A failing Grid is asked again with growing pauses; our own errors pass, and the deadline ends it."""

import logging

import pytest

from fedmem.coordinator.retry import FIRST_PAUSE, LONGEST_PAUSE, retry_until
from fedmem.errors import Refused, RemoteError
from fedmem.federation.clock import VirtualClock


class Flaky:
    """Raises `error` the first `failures` times."""

    def __init__(self, error: Exception, failures: int) -> None:
        self.error, self.failures, self.times = error, failures, list[float]()
        self.clock = VirtualClock()

    def __call__(self) -> str:
        self.times.append(self.clock.now())
        if len(self.times) <= self.failures:
            raise self.error
        return "done"


@pytest.mark.parametrize(
    "error", [ConnectionError("503"), TimeoutError(), RuntimeError("grpc"), ValueError("bad body")]
)
def test_a_transient_error_is_tried_again_with_growing_pauses(error: Exception) -> None:
    call = Flaky(error, failures=7)
    assert retry_until(call, call.clock, 3600.0, "x") == "done"
    pauses = [after - before for before, after in zip(call.times, call.times[1:], strict=False)]
    assert pauses == [min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) for number in range(7)]


def test_the_deadline_ends_it_with_a_typed_error_and_without_the_text_of_flower(
    caplog: pytest.LogCaptureFixture,
) -> None:
    call = Flaky(ConnectionError("token=hunter2"), failures=10**6)
    with caplog.at_level(logging.WARNING), pytest.raises(RemoteError, match="ConnectionError") as ended:
        retry_until(call, call.clock, 60.0, "naming its nodes")
    assert call.clock.now() <= 60.0
    assert len(call.times) > 5
    assert "hunter2" not in caplog.text + str(ended.value)


@pytest.mark.parametrize("error", [Refused("no"), KeyboardInterrupt()])
def test_a_decision_is_not_tried_again(error: BaseException) -> None:
    call = Flaky(error, failures=1)  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        retry_until(call, call.clock, 60.0, "x")
    assert call.times == [0.0]
