"""Federated parameters: dense and named, and local steps that leave no state behind."""

import numpy as np
import pytest

from fedmem.anchor.presets import new_anchor
from fedmem.training.bank_state import BankState
from fedmem.training.local import Federated
from tests.training.test_loop import PACKED, PATHS, ROW_PATHS, SETTINGS, SPEC


def test_local_steps_leave_no_state_behind():
    part = Federated(new_anchor("nano", 320, 0), BankState.new(SPEC, 2), ["anchor", "level-1"])
    start = part.params()
    first = part.train(start, PACKED, ROW_PATHS, SETTINGS, 5)
    part.train(start, PACKED, ROW_PATHS, SETTINGS, 6)
    again = part.train(start, PACKED, ROW_PATHS, SETTINGS, 5)
    assert set(start) == {name for name in start if name.startswith("anchor.")} | {"level-1"}
    assert all(np.array_equal(first[name], again[name]) for name in start)


def test_the_control_is_the_anchor_alone():
    part = Federated(new_anchor("nano", 320, 0), None, ["anchor"])
    start = part.params()
    trained_params = part.train(start, PACKED, ROW_PATHS, SETTINGS, 5)
    assert all(name.startswith("anchor.") for name in start)
    assert any(not np.array_equal(start[name], trained_params[name]) for name in start)


def test_parts_that_are_not_federated_keep_every_bit():
    state = BankState.new(SPEC, 2)
    part = Federated(new_anchor("nano", 320, 0), state, ["level-2", "generic"])
    start = part.params()
    after = part.train(start, PACKED, ROW_PATHS, SETTINGS, 5)
    assert set(start) == set(after) == {"level-2", "generic"}
    fresh = Federated(new_anchor("nano", 320, 0), BankState.new(SPEC, 2), ["anchor", "level-1"]).params()
    kept = Federated(part.model, state, ["anchor", "level-1"]).params()
    assert all(np.array_equal(fresh[name], kept[name]) for name in fresh)


def test_loaded_parameters_are_those_that_are_given_back_as_copies():
    part = Federated(new_anchor("nano", 320, 0), BankState.new(SPEC, 2), ["anchor", "level-1", "generic"])
    given = {name: np.full_like(values, 0.25) for name, values in part.params().items()}
    part.load(given)
    given["generic"][:] = 7
    assert all((values == 0.25).all() for values in part.params().values())
    assert sum(name == "anchor.lm_head.weight" for name in given) == 0  # tied to the embedding, which is there


def test_a_missing_parameter_is_an_error_and_a_control_has_no_source():
    part = Federated(new_anchor("nano", 320, 0), None, ["anchor", "level-1"])
    with pytest.raises(KeyError):
        part.load({})
    assert part.sources(PATHS[:2]) == []
