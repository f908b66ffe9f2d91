"""The schedule of the learning rates: a linear warm-up, then a cosine to its end."""

import itertools

import pytest

from fedmem.training.settings import Settings


def test_it_rises_linearly_then_falls_to_its_end():
    settings = Settings(steps=100, batch=1, lr=1.0, final=0.1, warmup=10)
    scales = [settings.scale(step) for step in range(101)]
    assert scales[0] == pytest.approx(0.1, rel=1e-2)
    assert all(a < b for a, b in itertools.pairwise(scales[:10]))
    assert all(a > b for a, b in itertools.pairwise(scales[10:]))
    assert scales[100] == pytest.approx(0.1)
    assert max(scales) <= 1


def test_without_warm_up_and_with_an_even_end_it_is_one():
    assert {Settings(steps=9, batch=1, lr=1.0, final=1.0, warmup=0).scale(step) for step in range(9)} == {1.0}


def test_no_steps_divide_by_nothing():
    assert Settings(steps=0, batch=1, lr=1.0).scale(0) == pytest.approx(0.1)
