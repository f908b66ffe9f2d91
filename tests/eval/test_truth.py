"""Truth ratio, forget quality and model utility agree with TOFU's definitions."""

import math

import numpy as np
import pytest

from fedmem.errors import UsageError
from fedmem.eval.truth import forget_quality, model_utility, perturb_answers, probability, truth_ratio


def test_truth_ratio_by_hand():
    true, wrong = np.log([0.5, 0.1]), np.log([[0.1, 0.3], [0.2, 0.4]])
    np.testing.assert_allclose(truth_ratio(true, wrong), [0.4, 3.0])


def test_probability_is_the_geometric_mean_of_its_tokens():
    losses = -np.array([math.log(0.5) + math.log(0.125), math.log(0.2)])
    np.testing.assert_allclose(probability(losses, np.array([2, 1])), [0.25, 0.2])


def test_forget_quality_by_hand():
    assert forget_quality(np.arange(5.0), np.arange(5.0)) == 1.0
    # All five below all five: two of the 252 ways to deal ten ratios to two sides.
    assert forget_quality(np.arange(5.0), np.arange(5.0) + 10) == pytest.approx(2 / 252)


def test_model_utility_is_a_harmonic_mean():
    assert model_utility([0.5, 0.25]) == pytest.approx(1 / 3)
    assert model_utility([1.0, 1.0, 0.0]) == 0.0


def test_perturbed_answers_keep_form_and_question():
    pairs = [
        ("Where was Mira Solen born?", "Mira Solen was born in Aldra in 1931."),
        ("Does Mira read?", "Yes, constantly."),
        ("Sign?", "!"),
    ]
    others = [("x", "She met Juno Keld in 1974."), ("y", "It was in Brennock, around 1966, in winter.")]
    wrong = perturb_answers(pairs, others, count=8, seed=1)
    assert wrong == perturb_answers(pairs, others, count=8, seed=1)
    places, years = ("Juno", "Keld", "Brennock"), ("1974", "1966")
    assert set(wrong[0]) <= {f"Mira Solen was born in {place} in {year}." for place in places for year in years}
    assert len(set(wrong[0])) > 2
    assert all(text.startswith("Yes, ") and text != "Yes, constantly." for text in wrong[1])
    assert all(text and text != "!" for text in wrong[2])


def test_perturbed_answers_need_words():
    with pytest.raises(UsageError, match="more authors"):
        perturb_answers([("a?", "In 1931.")], [("b?", "No.")], count=1, seed=0)
