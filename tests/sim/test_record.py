"""A record is plain data."""

import dataclasses

import pytest

from fedmem.sim.sources.record import SourceRecord


def test_records_are_plain_and_frozen() -> None:
    record = SourceRecord("text", None)
    assert dataclasses.asdict(record) == {"text": "text", "topic": None, "device": None, "split": "train"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.text = "other"  # type: ignore[misc]
