"""A scenario's federation becomes public terms; learning rates fall over all steps."""

import pytest
from msgspec.structs import replace

from fedmem.sim import scenario
from fedmem.sim.terms import rate_left, steps_by_round


def test_a_rate_falls_over_all_rounds_and_stays_without_a_word():
    f = replace(scenario.load("quickstart").federation, rounds=3, releases=2, final=0.1)
    shares = [rate_left(f, number) for number in range(1, 7)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(0.1)
    assert {rate_left(replace(f, final=1.0), number) for number in range(1, 9)} == {1.0}
    assert rate_left(replace(f, rounds=1, releases=1), 1) == 1


def test_a_rate_falls_with_the_steps_that_are_gone_where_rounds_grow():
    f = replace(scenario.load("quickstart").federation, rounds=4, releases=1, final=0.0, steps=30, first_steps=10)
    assert steps_by_round(f) == [10, 20, 30, 30]
    assert [rate_left(f, number) for number in range(1, 5)] == pytest.approx([1, 0.933, 0.5, 0], abs=1e-3)
