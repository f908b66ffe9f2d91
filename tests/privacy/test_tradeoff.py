"""The curve of a mechanism against closed forms and the best tests."""

import numpy as np
import pytest
from scipy.stats import norm

from fedmem.privacy.spend import SpendEvent
from fedmem.privacy.tradeoff import curve

GAUSSIAN = {2.0: SpendEvent(1.0, 1.9938, 1), 8.0: SpendEvent(1.0, 0.60023, 1)}
"""A Gaussian mechanism by its ε."""


@pytest.mark.parametrize("spend", GAUSSIAN.values())
def test_the_curve_of_the_gaussian_is_the_closed_form(spend):
    """Never above Φ(Φ⁻¹(y) - 1/σ), which would refute too much, and hardly below."""
    detections = np.linspace(0.001, 0.999, 400)
    least = np.array([curve(spend).least_alarms(y) for y in detections])
    exact = norm.cdf(norm.ppf(detections) - 1 / spend.noise_multiplier)
    assert (least <= exact + 1e-12).all()
    assert (least >= exact - 2e-4).all()


@pytest.mark.parametrize(("rate", "sigma"), [(0.5, 3.0), (0.1, 0.8), (0.9, 1.5)])
def test_the_curve_holds_in_both_orders(rate, sigma):
    """Tests by a threshold are the best ones: their false alarms are never fewer than the curve allows."""
    claim = curve(SpendEvent(rate, sigma, 1))
    ends = []
    for threshold in np.linspace(-4 * sigma, 4 * sigma, 60):
        alone = norm.sf(threshold / sigma)
        mixed = (1 - rate) * alone + rate * norm.sf((threshold - 1) / sigma)
        assert claim.least_alarms(mixed) <= alone + 1e-12
        assert claim.least_alarms(1 - alone) <= 1 - mixed + 1e-12
        ends.append(max(claim.least_alarms(mixed) / alone, claim.least_alarms(1 - alone) / (1 - mixed)))
    assert max(ends) > 0.99
