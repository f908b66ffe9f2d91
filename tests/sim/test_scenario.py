"""Scenarios: what is known, what is refused, and with which sentence."""

from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from fedmem.errors import UsageError
from fedmem.sim import scenario, summary
from fedmem.sim.terms import device_plan, steps_by_round

GOOD = scenario.scenarios_folder() / "quickstart.toml"


def changed(tmp_path, old, new):
    path = tmp_path / "changed.toml"
    text = GOOD.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", scenario.scenario_names())
def test_every_scenario_loads_and_round_trips(name):
    chosen = scenario.load(name)
    assert chosen.name == name
    assert scenario.from_dict(chosen.to_dict()) == chosen


def test_quickstart_says_why_it_has_no_noise_and_those_with_devices_to_protect_have_noise():
    assert scenario.load("quickstart").federation.unsafe_no_dp
    assert "eight devices" in scenario.load("quickstart").federation.unsafe_reason
    for name in ("thousand", "chats"):
        noisy = scenario.load(name).federation
        assert noisy.noise_multiplier > 0
        assert noisy.epsilon_max == 10.0
        assert not noisy.unsafe_no_dp


@pytest.mark.parametrize("size", [0, 25])
def test_a_report_names_adjacency_and_accounting_of_its_cohorts(size):
    chosen = scenario.load("thousand")
    terms = {"cohort_size": size, "sampling_rate": 1.0 if size else 0.025, "noise_multiplier": 4.0}
    federation = replace(chosen.federation, **terms)
    said = summary._epsilon(SimpleNamespace(scenario=replace(chosen, federation=federation)), {})
    kind, accounting = ("replace", "fixed-size") if size else ("add or remove", "Poisson")
    assert 0 < said["device"] < 10
    assert f"{kind} one device" in said["device_reason"]
    assert f"PLD of {accounting} samples" in said["device_reason"]
    assert "zeros in its place" in said["device_reason"]


def test_pretrain_and_its_central_counterpart_see_as_many_tokens_of_the_same_text():
    eight, many, central = (scenario.load(name) for name in ("pretrain", "pretrain-64", "pretrain-central"))
    for chosen in (eight, many):
        f = chosen.federation
        tokens = sum(steps_by_round(f)) * f.batch * device_plan(chosen).expected_cohort
        assert tokens == central.cotrain.steps * central.cotrain.batch
        assert sum(steps_by_round(f)) == central.cotrain.steps
        assert (chosen.anchor, chosen.bank) == (central.anchor, central.bank)
        assert (chosen.pretrain.steps, chosen.cotrain.steps) == (0, 0)
        shares = ("coordinator_share", "heldout_share", "documents", "source")
        assert all(getattr(chosen.public, key) == getattr(central.public, key) for key in shares)
    assert central.cotrain.pooled
    assert central.federation.rounds == 0
    assert (eight.public.devices, many.public.devices, many.federation.cohort_size) == (8, 64, 8)


def test_an_unknown_scenario_names_the_known_ones():
    with pytest.raises(UsageError, match="chats, pretrain, pretrain-64, pretrain-central, quickstart, thousand"):
        scenario.load("nothing")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 7", 'seed = "7"', "Expected `int`, got `str` at `seed`"),
        ("seed = 7", "seed = 7\nsede = 8", "unknown field `sede`"),
        ("branching = 3\n", "", "branching"),
        ("devices = [0, 1]", "devices = [0, 99]", "device that does not exist"),
        ("unsafe_no_dp = true", "unsafe_no_dp = false", "unsafe_no_dp = true"),
        ("[bank]", "[bank", "not valid TOML"),
        ('"level-1"', '"levle-1"', "federation.parts"),
        ("releases = 2", "releases = 0", ">= 1 at `federation.releases`"),
        ("record_cap = 1000", "record_cap = 100", "record_cap"),
        ("unsafe_no_dp", "noise_multiplier = 1.0\nunsafe_no_dp", "contradicts a noise_multiplier"),
        ("unsafe_no_dp", "epsilon_max = 8.0\nunsafe_no_dp", "epsilon_max needs a noise"),
        ("unsafe_no_dp", "cohort_size = 2\nsampling_rate = 0.5\nunsafe_no_dp", "two ways to draw"),
        ("unsafe_no_dp", "cohort_size = 9\nunsafe_no_dp", "larger than the number of devices"),
        ("unsafe_no_dp", "silent = 0.6\nhostile = 0.5\nunsafe_no_dp", "silent and hostile together"),
        ("unsafe_no_dp", "silent = -0.1\nunsafe_no_dp", ">= 0.0 at `federation.silent`"),
        ("unsafe_no_dp", "final = 0.0\nunsafe_no_dp", "> 0.0 at `federation.final`"),
        ("unsafe_no_dp", "eps = 0\nunsafe_no_dp", "> 0.0 at `federation.eps`"),
        ("unsafe_no_dp", "first_steps = 999\nunsafe_no_dp", "first_steps from 0 to steps"),
        ("unsafe_no_dp", "trim = 0.5\nunsafe_no_dp", "trim in"),
        ("unsafe_no_dp", 'optimiser = "adam"\nunsafe_no_dp', "fedavg, fedadam, diloco"),
        ("clip = 10.0\nunsafe", "clip = 0.0\nunsafe", "device plan"),
        ("steps = 900", "steps = 900\npooled = true", "rounds = 0"),
        ("steps = 2000\nbatch = 4\nlr = 3e-3", "steps = 2000", "needs a learning rate"),
        ("steps = 2000", "steps = -1", ">= 0 at `pretrain.steps`"),
        ("steps = 10\n", "steps = 0\n", ">= 1 at `federation.steps`"),
        ("concentration", 'source = "diary"\nconcentration', r"wikipedia\|chats.* at `public.source`"),
        ("concentration", 'source = "chats"\nconcentration', "no generated records"),
    ],
)
def test_a_wrong_scenario_is_refused_by_name(tmp_path, old, new, said):
    with pytest.raises(UsageError, match=said):
        scenario.load(changed(tmp_path, old, new))


def test_steps_of_nothing_need_no_other_settings(tmp_path):
    chosen = scenario.load(changed(tmp_path, "steps = 2000\nbatch = 4\nlr = 3e-3", "steps = 0"))
    assert chosen.pretrain == scenario.Phase(0)
