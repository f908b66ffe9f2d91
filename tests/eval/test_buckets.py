"""Loss by frequency: every token in one bucket, and the table that the obvious loop gives."""

import numpy as np
import pytest

from fedmem.eval.buckets import group_by_frequency, leaf_frequency


def measured(count=200, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 9, count)
    return rng.integers(0, 40, count), np.sort(rng.integers(0, 90, count)), tokens, rng.random((3, count)) * tokens


def table(frequency, document, tokens, losses):
    names = ("anchor", "generic", "fetched")
    arms = {name: (loss, tokens) for name, loss in zip(names, losses, strict=True)}
    return group_by_frequency(frequency, document, arms)


def test_rows_are_those_of_a_loop_over_sequences():
    frequency, document, tokens, losses = measured()
    rows = table(frequency, document, tokens, losses)
    assert len(rows) == 4
    for row in rows:
        low, high = (int(end) for end in row["bucket"].split("–"))
        own = [n for n in range(len(tokens)) if low <= frequency[n] <= high]
        assert row["documents"] == len({int(document[n]) for n in own})
        for column, name in enumerate(("anchor", "generic", "fetched")):
            assert row[name] == pytest.approx(sum(losses[column][n] for n in own) / sum(int(tokens[n]) for n in own))
        assert row["gain"] == row["anchor"] - row["fetched"]


@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_is_in_one_bucket(seed):
    frequency, _, tokens, losses = measured(seed=seed)
    one_each = table(frequency, np.arange(len(tokens)), np.ones_like(tokens), losses)
    assert sum(row["documents"] for row in one_each) == len(tokens)
    weighted = sum(row["documents"] * row["fetched"] for row in one_each)
    assert weighted == pytest.approx(losses[2].sum())


def test_buckets_are_of_about_equal_size_and_rarest_comes_first():
    rows = table(np.arange(80), np.arange(80), np.ones(80, dtype=int), np.ones((3, 80)))
    assert [row["bucket"] for row in rows] == ["0–19", "20–39", "40–58", "59–79"]


def test_equal_frequencies_stay_together():
    rows = table(np.full(7, 5), np.arange(7), np.ones(7, dtype=int), np.ones((3, 7)))
    assert [(row["bucket"], row["documents"]) for row in rows] == [("5–5", 7)]


def test_a_bucket_without_tokens_has_no_row():
    tokens = np.array([0, 3, 3, 3])
    rows = table(np.array([0, 4, 8, 12]), np.arange(4), tokens, np.ones((3, 4)))
    assert len(rows) == 3


def test_frequency_is_the_number_of_training_documents_in_the_leaf():
    assert leaf_frequency(np.array([2, 0, 2, 2]), np.array([2, 1, 0, 7])).tolist() == [3, 0, 1, 0]


def test_arms_on_other_tokens_are_not_compared():
    ones = np.ones(2)
    with pytest.raises(ValueError, match="same tokens"):
        group_by_frequency(ones, ones, {"anchor": (ones, np.array([1, 1])), "fetched": (ones, np.array([1, 2]))})
