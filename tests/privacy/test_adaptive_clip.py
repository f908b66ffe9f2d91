"""The adaptive clip norm: its charge from the definition of the Gaussian mechanism, and where it settles."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from fedmem.errors import Refused, UsageError
from fedmem.privacy.adaptive_clip import AdaptiveClip, share_below, update_noise

SETTINGS: dict[str, Any] = {"quantile": 0.5, "rate": 0.2, "bit_noise": 5.0, "least": 1e-3, "most": 10.0}


def gaussian_delta(distance: float, epsilon: float) -> float:
    """δ of a Gaussian of standard deviation 1 whose centre moves by `distance`: Balle and Wang 2018, Theorem 8."""
    above = norm.cdf(distance / 2 - epsilon / distance)
    return float(above - math.exp(epsilon) * norm.cdf(-distance / 2 - epsilon / distance))


@pytest.mark.parametrize(("sigma", "bit_noise"), [(1.0, 5.0), (0.6, 0.4), (4.0, 2.1), (3.0, 300.0)])
@pytest.mark.parametrize("replaced", [False, True])
def test_update_and_bit_together_cost_what_is_charged(sigma: float, bit_noise: float, *, replaced: bool) -> None:
    """The worst neighbours of both sums, measured in each one's own noise: C and 1/2, or 2 C and 1 if replaced."""
    factor = 2 if replaced else 1
    distance = math.hypot(factor / update_noise(sigma, bit_noise), factor * 0.5 / bit_noise)
    for epsilon in (0.1, 1.0, 3.0):
        assert gaussian_delta(distance, epsilon) == pytest.approx(gaussian_delta(factor / sigma, epsilon), rel=1e-9)
    # Without the split, the bit would be free of charge.
    assert gaussian_delta(math.hypot(factor / sigma, factor * 0.5 / bit_noise), 1.0) > gaussian_delta(
        factor / sigma, 1.0
    )


@pytest.mark.parametrize("bit_noise", [0.5, 0.1])
def test_a_bit_that_costs_all_is_refused(bit_noise: float) -> None:
    with pytest.raises(Refused, match="half of noise_multiplier"):
        update_noise(1.0, bit_noise)


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_it_settles_at_the_quantile_from_either_side(quantile: float) -> None:
    random = np.random.default_rng(7)
    settings = AdaptiveClip(**{**SETTINGS, "quantile": quantile})
    for clip in (0.01, 10.0):
        trail = []
        for _ in range(150):
            norms = random.lognormal(-1.0, 0.5, 100)
            bits = (norms <= clip).sum() - len(norms) / 2
            clip = settings.next_clip(clip, share_below(bits + 5.0 * random.standard_normal(), len(norms)))
            trail.append(clip)
        want = math.exp(-1.0 + 0.5 * norm.ppf(quantile))
        assert np.mean(trail[-50:]) == pytest.approx(want, rel=0.1)


def test_the_range_holds_and_noise_moves_it_one_step_at_most() -> None:
    settings = AdaptiveClip(**SETTINGS)
    assert settings.next_clip(1.0, 1e9) == settings.next_clip(1.0, 1.0) == pytest.approx(math.exp(-0.1))
    assert settings.next_clip(1.0, -1e9) == settings.next_clip(1.0, 0.0) == pytest.approx(math.exp(0.1))
    assert settings.next_clip(10.0, 0.0) == 10.0
    assert settings.next_clip(1e-3, 1.0) == 1e-3
    with pytest.raises(UsageError):
        settings.next_clip(1.0, math.nan)


def test_devices_that_do_not_answer_move_a_median_neither_way() -> None:
    settings = AdaptiveClip(**SETTINGS)
    assert settings.next_clip(1.0, share_below(0.0, 50.0)) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [{"quantile": 0.0}, {"quantile": 1.0}, {"rate": 0.0}, {"bit_noise": 0.0}, {"bit_noise": math.nan}, {"least": 0.0},
     {"least": 11.0}, {"most": math.inf}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="AdaptiveClip"):
        AdaptiveClip(**{**SETTINGS, **wrong})
