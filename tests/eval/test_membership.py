"""AUC and PrivLeak agree with their definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmem.eval.membership import auc, privleak

scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=8)


@given(scores, scores)
def test_auc_counts_pairs(members, others):
    wins = sum((m > o) + 0.5 * (m == o) for m in members for o in others)
    assert auc(members, others) == pytest.approx(wins / (len(members) * len(others)))
    assert auc(others, members) == pytest.approx(1 - auc(members, others))


def test_auc_by_hand():
    assert auc([3, 2], [1, 0]) == 1.0
    assert auc([1, 1], [1, 1, 1]) == 0.5
    assert auc([0, 2], [1]) == 0.5


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.nan])])
def test_no_auc_without_scores(members, others):
    with pytest.raises(ValueError, match="both sides"):
        auc(members, others)


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [(0.5, 0.5, 0), (1.0, 0.5, -100), (0.0, 0.5, 100), (0.9, 0.2, -87.5), (1.0, 1.0, None)],
)
def test_privleak_has_the_sign_of_muse(value, reference, expected):
    leak = privleak(value, reference)
    assert leak == (expected if expected is None else pytest.approx(expected))
