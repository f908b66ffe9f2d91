"""The spend of a run: its ranges and its JSON form."""

import math

import pytest

from fedmem.errors import VerificationFailed
from fedmem.privacy.spend import SpendEvent


@pytest.mark.parametrize("wrong", [(1.5, 1.0, 1), (-0.1, 1.0, 1), (0.1, -1.0, 1), (0.1, math.inf, 1), (0.1, 1.0, -1)])
def test_impossible_spends_are_refused(wrong):
    with pytest.raises(ValueError, match="spend"):
        SpendEvent(*wrong)


@pytest.mark.parametrize("wrong", [(math.nan, 1.0, 1), (0.1, math.nan, 1), (0.1, 1.0, 1.5), (0.1, 1.0, True)])
def test_values_of_another_type_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        SpendEvent(*wrong)


def test_the_json_form_brings_the_spend_back_with_and_without_a_plan():
    spend = SpendEvent(0.15, 1.5, 40)
    assert SpendEvent.from_dict(spend.to_dict()) == spend
    assert SpendEvent.from_dict(spend.to_dict() | {"plan": "a digest"}) == spend


@pytest.mark.parametrize(
    "change", [{"mechanism": "later/9"}, {"more": 1}, {"steps": -1}, {"steps": "3"}, {"noise_multiplier": math.inf}]
)
def test_a_json_form_of_another_kind_is_not_guessed(change):
    with pytest.raises(VerificationFailed):
        SpendEvent.from_dict(SpendEvent(0.15, 1.5, 40).to_dict() | change)


def test_a_missing_field_is_not_guessed():
    for name in ("mechanism", "sampling_rate", "noise_multiplier", "steps"):
        data = SpendEvent(0.15, 1.5, 40).to_dict()
        del data[name]
        with pytest.raises(VerificationFailed):
            SpendEvent.from_dict(data)
