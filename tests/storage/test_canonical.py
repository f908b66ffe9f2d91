"""Canonical JSON: one byte string for each value, and nothing that JSON cannot hold."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmem.storage.canonical import canonical_json, digest

PLAIN = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(PLAIN | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)


@given(VALUES)
def test_a_value_comes_back_and_encodes_to_the_same_bytes(value: Any) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


@given(st.dictionaries(TEXT, PLAIN, min_size=2))
def test_the_order_of_keys_changes_nothing(value: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")], "\ud800"])
def test_no_json_number_or_text_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        canonical_json({"a": value})


def test_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        canonical_json({"a": b"bytes"})


def test_a_digest_is_of_bytes_as_they_are_and_of_values_as_json() -> None:
    assert digest({"a": 1}) == digest(b'{"a":1}') != digest({"a": True})
    assert digest("") != digest(b"")
