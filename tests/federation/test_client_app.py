"""A ClientApp answers train.anchor alone, and with zeros whatever fails."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedmem.errors import RemoteError
from fedmem.federation import fixedpoint, wire
from fedmem.federation import flower_codec as records
from fedmem.federation.client_app import answer_request
from fedmem.federation.device import Device
from fedmem.federation.flower import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    RecordDict,
)
from fedmem.federation.port import NoApproval

Make = Callable[..., Any]
REPLY = wire.anchor_reply({"b": (3,), "w": (4, 3)}, clip=1.0)


def test_evaluate_and_unknown_requests_are_refused(toy: Make) -> None:
    made = toy()
    grid = made.grid()
    content = records.to_request(made.coordinator().open([1000]).request)
    replies = grid.send_and_receive([Message(content, 1000, kind) for kind in ("evaluate", "train", "query.erasure")])
    assert all(reply.has_error() for reply in replies)
    made.texts[0].append("another text")
    again = made.grid()
    again.send_and_receive([Message(content, 1000, kind) for kind in ("evaluate", "train", "query.erasure")])
    assert again.transcript.entries == grid.transcript.entries


def test_a_request_of_another_plan_or_another_shape_gets_zeros(toy: Make) -> None:
    made, other = toy(), toy(noise_multiplier=3.0)
    for content in (
        records.to_request(other.coordinator().open([1000]).request),
        RecordDict({"params": ArrayRecord(), "config": ConfigRecord({"round": 1})}),
        RecordDict({"surprise": ConfigRecord({})}),
    ):
        context = Context(1, 1000, {"partition-id": 1}, RecordDict(), {})
        fields = records.from_reply(answer_request(made.device, content, context), REPLY)
        assert wire.shapes_of(fields.arrays) == wire.shapes_of(fixedpoint.zeros({"b": (3,), "w": (4, 3)}))
        assert not any(array.any() for array in fields.arrays.values())


def test_a_device_that_cannot_be_built_is_answered_for_in_the_shapes_of_the_request(
    toy: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(context: Context) -> Device:
        raise RuntimeError("the vault of a patient is locked")

    content = records.to_request(toy().coordinator().open([1000]).request)
    fields = records.from_reply(answer_request(locked, content, Context(1, 1000, {}, RecordDict(), {})), REPLY)
    assert {name: (array.dtype, array.shape) for name, array in fields.arrays.items()} == {
        "b": (np.int32, (3,)),
        "w": (np.int32, (4, 3)),
    }
    assert not any(array.any() for array in fields.arrays.values())
    assert "RuntimeError" in caplog.text
    assert "patient" not in caplog.text


def test_without_approval_the_process_ends_and_nothing_is_returned(toy: Make) -> None:
    def unapproved(context: Context) -> Device:
        raise NoApproval

    content = records.to_request(toy().coordinator().open([1000]).request)
    with pytest.raises(SystemExit) as ended:
        answer_request(unapproved, content, Context(1, 1000, {}, RecordDict(), {}))
    assert ended.value.code == RemoteError.exit_code
