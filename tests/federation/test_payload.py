"""Evidence of a payload equals that of Flower's own bytes, without a copy of them."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from fedmem.federation.flower import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from fedmem.federation.payload import Evidence, count_bytes, measure_arrays, measure_payload
from fedmem.federation.transcript import serialise_content

ARRAYS = st.builds(
    Array,
    st.text(max_size=8),
    st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    st.text(max_size=200),
    st.binary(max_size=300),
)
RECORDS = st.dictionaries(st.text(max_size=150), ARRAYS, max_size=3).map(ArrayRecord)


@given(st.dictionaries(st.text(max_size=5), RECORDS, max_size=3).map(RecordDict))
def test_evidence_of_arrays_is_that_of_flowers_bytes(content: RecordDict) -> None:
    assert measure_arrays(content) == measure_payload(serialise_content(content))


def test_evidence_makes_no_copy_of_the_data() -> None:
    content = RecordDict({"update": ArrayRecord({"w": Array("int32", (2**20,), "raw", bytes(4 << 20))})})
    tracemalloc.start()
    try:
        measured = measure_arrays(content)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    assert measured.nbytes > 4 << 20


def test_an_estimate_counts_data_and_names_and_never_raises() -> None:
    records = {"a": ArrayRecord({"w": Array("int32", (1,), "raw", bytes(4))}), "c": ConfigRecord({"note": "xyz"})}
    assert count_bytes(RecordDict(records)) == 1 + 1 + 4 + 1 + 4 + 3
    assert count_bytes(RecordDict({"m": MetricRecord({"loss": 0.5})})) == 1 + 4 + 8
    assert [count_bytes(thing) for thing in (None, 3, [1], {"a": None}, {1: {}}, RecordDict({}))] == [0] * 6


def test_a_payload_is_measured_by_its_bytes() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert measure_payload(b"") == Evidence(0, empty)
