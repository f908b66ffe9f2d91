"""Exact tests fail for the bugs that they are made for, and planted bugs are gone afterwards."""

import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import kstest

from fedmem.eval import audit as room
from fedmem.eval import planted
from fedmem.eval.one_run import AuditSetup
from fedmem.eval.planted import BUGS, EXACT, find_failed_test
from fedmem.privacy import dpsgd
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

KEY = bytes(range(32))
FEW = 120
PLAN = PrivacyPlan(0.5, 8, 0.01, 3.13, 30.0, 1e-5, 1000)  # epsilon 2


def stream(label=b"audit"):
    return PrivacyStream(KEY, label)


@cache
def audit_setup():
    return AuditSetup.new(FEW)


@pytest.mark.parametrize(
    ("bug", "by"), [("batch_clip", "sensitivity"), ("half_noise", "noise_std"), ("reused_stream", "streams")]
)
def test_exact_tests_see_what_the_audit_cannot(bug, by):
    found = room.OneRun(audit_setup(), PLAN, stream()).audit_bug(bug, PLAN.epsilon())
    assert (found["caught"], found["by"]) == (True, f"exact: {by}")
    assert found["lower_bound"] < PLAN.epsilon()


@pytest.mark.parametrize(("shape", "right"), [("normal", True), ("uniform", False), ("wide", False)])
def test_the_distance_is_that_of_kolmogorov_and_smirnov(shape, right):
    random = np.random.default_rng(3)
    drawn = {"normal": random.standard_normal(5000), "wide": 1.3 * random.standard_normal(5000)}
    values = drawn.get(shape, random.uniform(-math.sqrt(3), math.sqrt(3), 5000)).astype(np.float32)
    found = planted._distance(values)
    assert found == pytest.approx(math.sqrt(5000) * kstest(values, "norm").statistic, abs=1e-4)
    assert (found < planted.FARTHEST) == right


SEEN_BY = {
    "streams": {"no_noise", "reused_stream"},
    "noise_std": {"no_noise", "noise_over_b", "half_noise", "reused_stream"},
    "sensitivity": {"no_clip", "batch_clip"},
}


@pytest.mark.parametrize("test", EXACT)
def test_an_exact_test_fails_for_its_bugs_and_for_nothing_else(test):
    assert EXACT[test](audit_setup(), PLAN, stream())
    for bug, broken in BUGS.items():
        with broken(PLAN):
            assert EXACT[test](audit_setup(), PLAN, stream()) == (bug not in SEEN_BY[test]), bug


def pieces():
    return dpsgd.add_noise, dpsgd.clipped_sum, PrivacyStream.substream


@pytest.mark.parametrize("bug", BUGS)
def test_nothing_is_planted_when_the_context_has_ended(bug):
    whole = pieces()

    def interrupted():
        with BUGS[bug](PLAN):
            assert pieces() != whole
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert pieces() == whole


def test_the_mechanism_as_it_is_fails_no_exact_test():
    assert find_failed_test(audit_setup(), PLAN, stream()) is None
