"""Adapt the clip norm of a federation to a quantile of the updates' norms, and charge what that reveals.

Each device sends, beside its clipped update, one bit: 1 if its norm was at most the round's public clip norm C. The
coordinator adds noise to the sum of the bits as it does to the sum of the updates, and moves C by the noisy share
(Andrew, Thakkar, McMahan and Ramaswamy 2021, Algorithm 1).

Invariants
- The clip norm of a round is public, and a function of earlier noisy sums alone. To compute it costs no privacy.
- The clip norm never leaves the plan's range, so a grid and a gate that hold for the largest one hold for all.
- A round with split noise is charged as one round with the plan's noise multiplier z, as if there were no bits.
- A device that has nothing to send, or that fails, counts 0 for its bit, neither +1/2 nor -1/2.

Why the charge is right. A device with bit b counts b - 1/2. So it moves the sum of the bits by at most 1/2 if it is
added or removed, and by at most 1 if it is replaced. Divide the updates by z_u C and the bits by z_b, where z_u and z_b
are the standard deviations of the two noises, in C and in bits. Both sums then have noise of standard deviation 1. The
vector of both moves by at most s (1/z_u² + 1/(2 z_b)²)^(1/2), where s is 1 for adding or removing and 2 for replacing.
With 1/z_u² = 1/z² - 1/(2 z_b)² this is s / z: the sensitivity of updates alone with the multiplier z (Theorem 1).

>>> round(update_noise(1.0, bit_noise=5.0), 4)
1.005
>>> AdaptiveClip(quantile=0.5, rate=0.2, bit_noise=5.0, least=0.01, most=1.0).next_clip(0.5, noisy_share=0.5)
0.5
"""

import math
from dataclasses import dataclass

from fedmem.errors import Refused, UsageError


@dataclass(frozen=True)
class AdaptiveClip:
    """The public settings of an adaptive clip norm.

    | field | meaning |
    |---|---|
    | quantile | the share of devices whose norm should be at most the clip norm, in (0, 1) |
    | rate | step of the logarithm of the clip norm for a share that is off by 1, above 0 |
    | bit_noise | standard deviation of the noise on the sum of the bits, in bits, above 0 |
    | least, most | the range of the clip norm, above 0; the plan's `clip` is in it |
    """

    quantile: float
    rate: float
    bit_noise: float
    least: float
    most: float

    def __post_init__(self) -> None:
        is_in_range = (
            0 < self.quantile < 1
            and 0 < self.rate < math.inf
            and 0 < self.bit_noise < math.inf
            and 0 < self.least <= self.most < math.inf
        )
        if not is_in_range:
            raise UsageError(
                "A number of the adaptive clip norm is out of its range; the table of AdaptiveClip names them."
            )

    def next_clip(self, clip: float, noisy_share: float) -> float:
        """Return the clip norm of the next round.

        Guarantees: post-processing of `noisy_share`.

        | noisy share | next clip norm |
        |---|---|
        | the quantile | the same |
        | above it | smaller |
        | outside [0, 1], by noise | as at the nearer end |
        | NaN | UsageError |

        Args:
            clip: the clip norm of this round.
            noisy_share: `share_below` of this round.
        """
        if math.isnan(noisy_share):
            raise UsageError("A noisy share of devices is a number.")
        share = min(1.0, max(0.0, noisy_share))
        return min(self.most, max(self.least, clip * math.exp(-self.rate * (share - self.quantile))))


def share_below(noisy_centred_sum: float, expected_cohort: float) -> float:
    """Return the noisy share of devices whose norm was at most the clip norm.

    A device that did not answer counts as one half: it moves a quantile of 0.5 neither way.

    Args:
        noisy_centred_sum: the sum of b - 1/2 over the devices that answered, plus noise.
        expected_cohort: the public divisor of the round's sums.
    """
    return noisy_centred_sum / expected_cohort + 0.5


def update_noise(noise_multiplier: float, bit_noise: float) -> float:
    """Return the noise multiplier of the updates, so that updates and bits together cost `noise_multiplier`.

    Guarantees: the sum of the updates with the returned multiplier and the sum of the centred bits with `bit_noise` are
    together a Gaussian mechanism of multiplier `noise_multiplier`, under adding or removing and under replacing a
    device (Andrew et al. 2021, Theorem 1).

    Args:
        noise_multiplier: of the charge, above 0, in clip norms.
        bit_noise: standard deviation of the noise on the sum of the bits, in bits.

    Raises:
        Refused: so little noise on the bits alone costs as much as the charge, or more.
    """
    left = noise_multiplier**-2 - (2 * bit_noise) ** -2
    if left <= 0:
        raise Refused(
            "The noise on the clip bits is at most half of noise_multiplier; the bits alone would cost it all."
        )
    multiplier: float = left**-0.5
    return multiplier
