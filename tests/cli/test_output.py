"""What reaches stdout: one document, finite numbers, no control characters."""

import math
from pathlib import Path

from fedmem.cli.output import clean, plain, shown


def test_unbounded_numbers_become_null() -> None:
    assert plain([math.inf, -math.inf, math.nan, 1.5]) == [None, None, None, 1.5]


def test_plain_keeps_json_values_and_converts_the_rest() -> None:
    assert plain({"a": (Path("/x"), None, True)}) == {"a": ["/x", None, True]}


def test_escape_sequences_do_not_reach_a_terminal() -> None:
    assert "\x1b" not in clean("\x1b]0;title\x07topic")
    assert "\x1b" not in shown("\x1b[2J")


def test_shown() -> None:
    assert [shown(value) for value in (None, True, 0.12345, 3.0, 7)] == ["–", "yes", "0.1235", "3.000", "7"]
