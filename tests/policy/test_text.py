"""Texts from outside: what is no text, or too long, is refused with an error of ours, at once, at every entrance."""

import time

import pytest

from fedmem.errors import UsageError
from fedmem.policy.policy import Policy
from fedmem.policy.text import MOST_BYTES, check_text

NO_TEXTS = [None, b"bytes", 7, ["text"], "Half \ud83d of it", "\udc80", "a" * (MOST_BYTES + 1), "漢" * 400_000]


@pytest.mark.parametrize("text", NO_TEXTS, ids=lambda text: ascii(text)[:20])
def test_what_is_no_text_is_refused_by_the_policy(text):
    with pytest.raises(UsageError) as refusal:
        Policy.load("default").place(text)
    assert not isinstance(text, str) or text[:4] not in str(refusal.value)


def test_texts_of_any_script_and_with_control_characters_pass():
    for text in ("", "\0", "naïve", "漢字", "😀", "a" * MOST_BYTES, "\r\n\u2028"):
        assert check_text(text) is text


def test_a_long_text_is_refused_at_once():
    for text in ("a" * 10_000_000, "漢" * 10_000_000):
        start = time.process_time()
        with pytest.raises(UsageError, match="bytes"):
            check_text(text)
        assert time.process_time() - start < 0.01
