"""A process without approval ends in a way that no handler turns into an answer."""

import pytest

from fedmem.errors import RemoteError
from fedmem.federation.port import NoApproval


def stop(reason: Exception) -> None:
    try:
        raise NoApproval(reason)
    except Exception:  # noqa: BLE001  (what Flower does with an app's exception)
        pytest.fail("An exception would be sent to the server.")


def test_the_end_is_no_exception_that_flower_would_catch_and_send() -> None:
    reason = RuntimeError("text of a record")
    with pytest.raises(NoApproval) as ended:
        stop(reason)
    assert (ended.value.code, ended.value.reason) == (RemoteError.exit_code, reason)
    assert "record" not in str(ended.value)
