"""Numbers are formatted for readers, and odd ones stop nothing."""

import math
from typing import Any

import pytest

from fedmem.sim.report_parts import (
    format_duration,
    format_epsilon,
    format_loss,
    format_number,
    format_size,
    make_headlines,
    value_at,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.6049, "4.605"), (-4e-4, "−0.000"), (0, "0.000"), (None, "–"),
        (math.nan, "–"), (math.inf, "∞"), (-math.inf, "−∞"),
    ],
)  # fmt: skip
def test_a_loss(value: Any, text: str) -> None:
    assert format_loss(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"),
        (999_949, "999.9 kB"), (1e6, "1.0 MB"), (5e11, "500.0 GB"),
    ],
)  # fmt: skip
def test_a_size(value: Any, text: str) -> None:
    assert format_size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (3725.9, "62 min 5 s")]
)
def test_a_duration(value: Any, text: str) -> None:
    assert format_duration(value) == text


def test_other_numbers() -> None:
    assert format_epsilon(7.996) == "8.00"
    assert format_number(-1234.5, ",.1f") == "−1,234.5"


@pytest.mark.parametrize("path", ["a.b.c.d", "a.x", "x", "a.b.c.0", ""])
def test_a_missing_step_of_a_path_is_none(path: str) -> None:
    assert value_at({"a": {"b": {"c": 1}}}, path) is None
    assert value_at({"a": {"b": {"c": 1}}}, "a.b.c") == 1


def headlines(run: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {headline.title: (headline.value, headline.detail) for headline in make_headlines(run)}


def test_a_run_without_figures_has_no_headline() -> None:
    assert headlines({}) == {}
    assert headlines({"loss": {"public": None, "private": {}}, "erasure": None, "bytes": {}, "seconds": None}) == {}


@pytest.mark.parametrize(
    ("after", "detail"), [(5.218, "equal to “without”, to the last bit"), (5.2180001, "differs from “without”, 5.218")]
)
def test_a_loss_after_erasure_is_equal_only_to_the_last_bit(after: float, detail: str) -> None:
    shown = headlines({"loss": {"private": {"with": 3.9, "without": 5.218, "after_erasure": after}}})
    assert shown["Private loss, after erasure"] == ("5.218", detail)


def test_without_noise_epsilon_is_infinite_and_says_why() -> None:
    assert headlines({"epsilon": {"device": None}})["ε, federated part"] == ("∞", "no noise: unsafe_no_dp = true")
    assert headlines({"epsilon": {"device": 7.3}})["ε, federated part"] == ("7.30", "device level")


def test_an_erasure_that_was_not_verified_says_so() -> None:
    assert headlines({"erasure": {"status": "partial", "verified": False}})["Erasure"] == (
        "partial",
        "receipt not verified",
    )
