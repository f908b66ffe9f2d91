"""Each rule alone: what it claims, what it leaves, and that it never quotes."""

import numpy as np
import pytest

from fedmem.policy.rules import AllOf, AnyOf, Keywords, Patterns, SeedPhrases, Unread, Verdict, fold

V = np.ones(2, dtype=np.float32)


class Says:
    """A rule that always gives what it was told."""

    def __init__(self, verdict: Verdict | None) -> None:
        self.verdict = verdict

    def judge(self, text: str, vector: np.ndarray) -> Verdict | None:
        return self.verdict


@pytest.mark.parametrize(
    ("text", "claimed"),
    [("my Salary", True), ("ＭＹ ＳＡＬＡＲＹ", True), ("my sal\u200bary", True), ("my sal\u00adary", True),
     ("salaryman, my friend", False), ("salary", False), ("", False)],
)  # fmt: skip
def test_keywords_are_whole_folded_words(text: str, claimed: bool) -> None:
    assert bool(Keywords("k", frozenset({"my", "salary"}), 2).judge(fold(text), V)) is claimed


def test_a_phrase_is_found_across_punctuation_and_only_in_order() -> None:
    rule = Keywords("k", frozenset({"blood test result"}))
    assert rule.judge(fold("Blood-test\nresult"), V)
    assert not rule.judge(fold("result of the blood test"), V)


def test_one_word_said_twice_counts_once() -> None:
    assert not Keywords("k", frozenset({"card", "loan"}), 2).judge(fold("card card card"), V)


def test_patterns_and_no_patterns() -> None:
    assert Patterns("p", (r"\d{4}", "x+y")).judge(fold("pin 1234"), V) == Verdict("p")
    assert Patterns("p", ()).judge(fold("1234"), V) is None


def test_any_of_takes_the_strongest_and_all_of_the_weakest() -> None:
    weak, strong, none = Says(Verdict("weak", 1.0)), Says(Verdict("strong", 2.0)), Says(None)
    assert AnyOf((none, weak, strong)).judge(fold(""), V) == Verdict("strong", 2.0)
    assert AllOf("all", (strong, weak)).judge(fold(""), V) == Verdict("all", 1.0)
    assert AllOf("all", (strong, none)).judge(fold(""), V) is None
    assert AnyOf(()).judge(fold(""), V) is AllOf("all", ()).judge(fold(""), V) is None


@pytest.mark.parametrize(("cosine", "claimed"), [(0.49, False), (0.5, True), (1.0, True), (-1.0, False)])
def test_seed_phrases_claim_from_their_threshold_on(cosine: float, claimed: bool) -> None:
    rule = SeedPhrases("s", np.array([[1, 0]], dtype=np.float32), 0.5)
    vector = np.array([cosine, np.sqrt(1 - cosine**2)], dtype=np.float32)
    assert bool(rule.judge(fold(""), vector)) is claimed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_no_number_is_in_doubt(bad: float) -> None:
    assert SeedPhrases("s", np.array([[1, 0]], dtype=np.float32), 0.5).judge(fold(""), np.array([bad, 0], np.float32))


@pytest.mark.parametrize(
    ("text", "vector", "claimed"),
    [("the river runs to the sea", V, False), ("der fluss mündet ins meer", V, True), ("", V, True),
     ("the river", np.zeros(2, dtype=np.float32), True)],
)  # fmt: skip
def test_what_cannot_be_read_is_in_doubt(text: str, vector: np.ndarray, claimed: bool) -> None:
    assert bool(Unread("u", frozenset({"the", "to"}), 0.2).judge(fold(text), vector)) is claimed
