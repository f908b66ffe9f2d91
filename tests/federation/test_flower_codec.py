"""Fields cross Flower unchanged; records that are not the protocol's are refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedmem.errors import BoundaryViolation, VersionMismatch
from fedmem.federation import fixedpoint, wire
from fedmem.federation import flower_codec as records
from fedmem.federation.flower import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from fedmem.federation.wire import Fields

SHAPES = {"w": (2, 3), "b": (3,)}
REPLY = wire.anchor_reply(SHAPES, clip=1.0)


def request(**scalars: Any) -> Fields:
    good = {
        "protocol": wire.PROTOCOL,
        "round": 1,
        "seed": 3,
        "steps": 2,
        "batch": 4,
        "learning_rate": 0.1,
        "memory_learning_rate": 0.0,
        "plan": "a" * 64,
    }
    return Fields({n: np.zeros(s, np.uint16) for n, s in SHAPES.items()}, {**good, **scalars})


def reply(**arrays: Any) -> Fields:
    return Fields({**fixedpoint.zeros(SHAPES), **arrays})


@pytest.mark.parametrize("stype", ["fedmem.raw.le", "fedmem.raw.le/1", "fedmem.raw.le/33", "fedmem.raw.le/"])
def test_arrays_of_another_protocol_are_refused_for_their_version(stype: str) -> None:
    old = {"b": Array("int32", (3,), stype, bytes(12)), "w": Array("int32", (2, 3), stype, bytes(24))}
    with pytest.raises(VersionMismatch):
        records.from_reply(RecordDict({"update": ArrayRecord(old)}), REPLY)
    assert records.requested_shapes(RecordDict({"update": ArrayRecord(old)})) == {}


def test_fields_cross_flower_unchanged() -> None:
    sent = request()
    back = records.from_request(records.to_request(sent), wire.anchor_request(SHAPES))
    assert back.digest() == sent.digest()
    update = reply(b=np.array([1, -2, 3], np.int32))
    assert records.from_reply(records.to_reply(update), REPLY).digest() == update.digest()


def _planted(kind: str) -> RecordDict:
    content = records.to_reply(reply())
    if kind == "a metric record":
        content["metrics"] = MetricRecord({"loss": 0.5})
    elif kind == "a config record":
        content["config"] = ConfigRecord({"note": "x"})
    elif kind == "no record":
        del content["update"]
    elif kind == "another record type":
        content = RecordDict({"update": ConfigRecord({"b": 1})})
    else:
        array = {
            "a numpy file": Array(np.zeros(3, np.int32)),
            "a byte too many": Array("int32", (3,), records.STYPE, bytes(13)),
            "a byte too few": Array("int32", (3,), records.STYPE, bytes(11)),
            "a pickle": Array("object", (3,), "pickle", bytes(12)),
            "a shape of ten gigabytes": Array("int32", (2_000_000_000, 2), records.STYPE, bytes(12)),
            "more axes than numpy has": Array("int32", (1,) * 200, records.STYPE, bytes(4)),
            "an empty shape beyond numpy": Array("int32", (0, 2**70), records.STYPE, b""),
            "a negative shape": Array("int32", (-1, -3), records.STYPE, bytes(12)),
        }[kind]
        content["update"] = ArrayRecord({"b": array, "w": Array("int32", (2, 3), records.STYPE, bytes(24))})
    return content


KINDS = [
    "a metric record", "a config record", "no record", "another record type", "a numpy file", "a byte too many",
    "a byte too few", "a pickle", "a negative shape", "a shape of ten gigabytes", "more axes than numpy has",
    "an empty shape beyond numpy",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_records_that_are_not_the_protocol_are_refused(kind: str) -> None:
    with pytest.raises(BoundaryViolation):
        records.from_reply(_planted(kind), REPLY)


def test_a_reply_with_a_scalar_is_not_even_encoded() -> None:
    with pytest.raises(BoundaryViolation):
        records.to_reply(replace(reply(), scalars={"loss": 1.0}))
