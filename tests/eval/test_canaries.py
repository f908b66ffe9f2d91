"""Canaries and their exposure, from the definition."""

import math

import numpy as np
import pytest

from fedmem.eval.canaries import MOST, exposure, plant


def test_canaries_follow_the_seed_and_have_names_of_their_own() -> None:
    canaries = plant(MOST, digits=2, seed=3)
    assert plant(MOST, digits=2, seed=3) == canaries
    assert [one.secret for one in plant(MOST, digits=2, seed=4)] != [one.secret for one in canaries]
    assert len({canary.prefix for canary in canaries}) == MOST
    with pytest.raises(ValueError, match="longer"):
        plant(MOST + 1, digits=1, seed=3)


def test_every_number_is_a_candidate_and_the_text_holds_the_true_one() -> None:
    (canary,) = plant(1, digits=2, seed=3)
    assert len(set(canary.candidates)) == 100
    assert {"".join(c for c in candidate if c.isdigit()) for candidate in canary.candidates} == {
        f"{number:02}" for number in range(100)
    }
    assert canary.text == canary.prefix + canary.candidates[canary.secret]


def test_secrets_are_uniform() -> None:
    secrets = [canary.secret for seed in range(100) for canary in plant(MOST, digits=1, seed=seed)]
    counts = np.bincount(secrets, minlength=10)
    expected = len(secrets) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 33.7  # chi-squared, 9 degrees of freedom, 1e-4


@pytest.mark.parametrize(("secret", "bits"), [(0, 2.0), (1, 1.0), (2, 2 - math.log2(3)), (3, 0.0)])
def test_exposure_is_the_bits_that_the_rank_gives_away(secret: int, bits: float) -> None:
    assert exposure([1.0, 2.0, 3.0, 4.0], secret) == pytest.approx(bits)
    assert exposure(np.array([4.0, 8.0, 12.0, 16.0]), secret) == pytest.approx(bits)


def test_a_tie_counts_against_the_exposure() -> None:
    assert exposure([5.0] * 8, secret=0) == 0.0
    assert exposure([1.0, 1.0, 3.0, 4.0], secret=0) == 1.0


def test_a_model_that_knows_nothing_has_144_hundredths_of_a_bit_on_average() -> None:
    random = np.random.default_rng(0)
    mean = np.mean([exposure(random.random(1000), 0) for _ in range(4000)])
    assert mean == pytest.approx(1 / math.log(2), abs=0.1)
