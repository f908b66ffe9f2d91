"""Plans: all their fields are inputs of a training, and a mode that does not exist is refused."""

from dataclasses import fields, replace

import pytest

from fedmem.errors import UsageError
from fedmem.training.plans import MODES, AnchorPlan, TrainPlan, plan_inputs
from fedmem.training.settings import Settings

SETTINGS = Settings(steps=5, batch=2, lr=1e-3)
PLANS = [TrainPlan("cotrain", 256, SETTINGS, 7), AnchorPlan("nano", 300, 256, SETTINGS, 7)]


@pytest.mark.parametrize("plan", PLANS)
def test_every_field_of_plan_and_settings_is_an_input(plan):
    inputs = plan_inputs(plan)
    assert set(inputs) == {f.name for f in [*fields(plan), *fields(plan.settings)]} - {"settings"}
    assert all(inputs[f.name] == getattr(SETTINGS, f.name) for f in fields(SETTINGS))
    assert plan_inputs(replace(plan, seed=8)) != inputs
    assert plan_inputs(replace(plan, settings=replace(SETTINGS, bf16=True))) != inputs


def test_only_the_modes_are_modes():
    assert [TrainPlan(mode, 256, SETTINGS, 7).mode for mode in MODES] == list(MODES)
    for mode in ("", "Cotrain", "sideways"):
        with pytest.raises(UsageError, match="cotrain"):
            TrainPlan(mode, 256, SETTINGS, 7)
