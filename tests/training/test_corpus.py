"""A corpus holds out the same texts in every order and for every command."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmem.errors import UsageError
from fedmem.training.corpus import HELDOUT_SHARE, Corpus
from tests.coordinator.workplace import CORPUS, TEXTS


def test_what_is_held_out_is_so_in_every_order_and_never_trained_on():
    twice = [*TEXTS[::-1], *TEXTS[:30]]
    assert set(Corpus.of(twice).heldout) == set(CORPUS.heldout)
    assert not set(Corpus.of(twice).train) & set(CORPUS.heldout)
    assert len(CORPUS.heldout) == 3


def test_a_corpus_of_one_text_is_refused():
    with pytest.raises(UsageError, match="two different"):
        Corpus.of(["a", "a"])


@given(st.lists(st.text(max_size=3), min_size=2, max_size=25).filter(lambda texts: len(set(texts)) > 1))
def test_both_parts_together_are_the_texts(texts: list[str]) -> None:
    corpus = Corpus.of(texts)
    assert sorted([*corpus.train, *corpus.heldout]) == sorted(texts)
    assert not set(corpus.train) & set(corpus.heldout)
    assert 1 <= len(set(corpus.heldout)) < 1 + HELDOUT_SHARE * len(set(texts))


def test_the_digest_follows_texts_and_order() -> None:
    digests = {Corpus.of(texts).digest for texts in (TEXTS, TEXTS[::-1], TEXTS[:-1])}
    assert len(digests) == 3
    assert CORPUS.digest in digests
