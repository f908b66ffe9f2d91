"""Membership from the last bits (arXiv 2207.13793): nothing to see on the grid, all to see with float noise."""

from functools import cache, partial

import numpy as np
import pytest

from fedmem.eval import rounding_audit as room
from fedmem.eval.one_run import AuditSetup
from fedmem.eval.rounding import Attack
from fedmem.federation import device_dp
from fedmem.federation.server_step import OPTIMISERS
from fedmem.privacy import dpsgd
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

EPSILONS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
KEY = bytes(range(32))


def stream(label=b"rounding"):
    return PrivacyStream(KEY, label)


@cache
def setup():
    return AuditSetup.new(120)


def training(epsilon, is_included, draws):
    return room.attack_training(setup(), epsilon, is_included, draws)


def holds(place):
    low, high = place["interval"]
    return low < 0.5 < high and place["impossible"] == 0 and not room.is_failed(place)


@cache
def trained(trials=16):
    return room.run_trials(training, room.float_trainings, stream(), (2.0, 8.0), trials)


@pytest.mark.parametrize("place", ["updates", "final_block"])
def test_last_bits_of_a_training_tell_nothing_and_those_of_float_noise_everything(place):
    figures = trained()[place]
    assert holds(figures)
    assert figures["planted_correct"] == figures["out_of"] == 16
    assert figures["planted_caught"]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_last_bits_of_federated_parameters_tell_nothing_and_those_of_float_noise_everything(optimiser):
    figures = room.run_trials(
        partial(room.attack_federation, optimiser), room.float_federations, stream(), (2.0, 8.0), 24
    )["federated"]
    assert holds(figures)
    assert figures["planted_correct"] == figures["out_of"] == 24
    assert figures["planted_caught"]


@pytest.mark.parametrize(("optimiser", "least", "most"), [(room.KEEPING, 0.3, 1.0), (dpsgd.Optimiser(), 0.0, 0.2)])
def test_the_final_block_keeps_last_bits_of_its_last_update(monkeypatch, optimiser, least, most):
    """The default optimiser rounds most of them away, so the audit takes one that keeps them."""
    monkeypatch.setattr(room, "KEEPING", optimiser)
    plan = room._plan(8.0, room.STEPS)
    trace, before = room._train(setup(), plan, [0, 1], stream())
    post, update = room._last_step(before, plan), trace.updates_SX[-1].numpy()
    assert np.array_equal(post(update), -trace.end_X.numpy())
    assert least <= np.mean(post(np.nextafter(update, np.float32(np.inf))) != post(update)) <= most


@pytest.mark.parametrize("planted", [room.float_trainings, room.float_federations])
def test_nothing_is_planted_when_the_context_has_ended(planted):
    whole = dpsgd.add_noise, device_dp._noisy, PrivacyPlan.grid

    def interrupted():
        with planted():
            assert (dpsgd.add_noise, device_dp._noisy, PrivacyPlan.grid) != whole
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (dpsgd.add_noise, device_dp._noisy, PrivacyPlan.grid) == whole


def counted(guess, impossible=0, trials=24):
    """Figures of a place where `guess(coin)` is the guess, and float noise is always found."""

    def trial(_epsilon, coin, _stream):
        return {"place": Attack(coin if planted["in"] else guess(coin), 0 if planted["in"] else impossible)}

    planted = {"in": False}

    @room.contextmanager
    def bug():
        planted["in"] = True
        yield
        planted["in"] = False

    return room.run_trials(trial, bug, stream(), (1.0,), trials)["place"]


@pytest.mark.parametrize(
    ("guess", "impossible", "is_failed"),
    [(lambda coin: coin, 0, True), (lambda _: False, 0, False), (lambda _: False, 1, True)],
)
def test_a_place_fails_if_the_coin_is_told_or_a_value_is_impossible(guess, impossible, is_failed):
    figures = counted(guess, impossible)
    assert room.is_failed(figures) == is_failed
    assert (figures["planted_correct"], figures["planted_caught"]) == (24, True)


def test_trials_differ_and_follow_their_key():
    """Each trial has coins and noise of its own; equal keys give equal figures."""
    seen = []

    def trial(epsilon, coin, draws):
        seen.append((epsilon, coin, int(draws.words(1)[0])))
        return {"place": Attack(False, 0)}

    for _ in range(2):
        room.run_trials(trial, room.nullcontext, stream(), (1.0, 2.0), 10)
    assert seen[:20] == seen[20:]
    assert len({word for _, _, word in seen}) == 20
    assert {coin for _, coin, _ in seen} == {True, False}
    assert {epsilon for epsilon, _, _ in seen} == {1.0, 2.0}


@pytest.mark.slow
def test_no_place_tells_at_any_claimed_epsilon():
    figures = room.run_rounding(setup(), stream(b"all"), EPSILONS, 96)
    assert set(figures) == {"updates", "final_block", "federated"}
    assert [name for name, place in figures.items() if not holds(place)] == []
    assert [name for name, place in figures.items() if not place["planted_caught"]] == []
    assert figures["federated"]["out_of"] == 3 * figures["updates"]["out_of"] == 288
    assert all(place["planted_correct"] == place["out_of"] for place in figures.values())
