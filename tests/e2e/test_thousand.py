"""The scenario thousand in small: noise, faults, a device-level ε, its ledger, the same digest after a break."""

import json
from pathlib import Path

import pytest

from fedmem import paths
from fedmem.coordinator.journal import Journal
from fedmem.sim.report import render_page
from fedmem.sim.run import run_scenario

MINI = Path(__file__).with_name("mini.toml")


def quiet(*_):
    """Say nothing."""


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A scenario file: 40 devices, Poisson cohorts, noise, level-1 blocks only, nothing private."""
    text = MINI.read_text(encoding="utf-8")
    before, after = text[: text.index("[[private]]")], text[text.index("[anchor]") :]
    text = before.replace("devices = 3", "devices = 40") + after
    text = text.replace('parts = ["anchor", "level-1", "generic"]', 'parts = ["level-1"]').replace(
        "releases = 2", "releases = 1"
    )
    text = text.replace(
        'unsafe_no_dp = true\nunsafe_reason = "a test"',
        "noise_multiplier = 0.9\nsampling_rate = 0.3\nepsilon_max = 10.0\nsilent = 0.3\nhostile = 0.1",
    )
    path = tmp_path_factory.mktemp("thousand") / "small_thousand.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def done(home, thousand):
    return run_scenario(thousand, corpus=None, seed=None, fresh=False, name="thousand", progress=quiet)


def test_noise_is_on_and_every_round_is_in_the_ledger(done):
    assert 0 < done["epsilon"]["device"] <= 10
    assert "unsafe" not in done["epsilon"]["device_reason"]
    assert done["epsilon"]["coordinator"] is None
    entries = [
        json.loads(line)["body"] for line in (paths.runs_dir() / "thousand" / "ledger.jsonl").read_text().splitlines()
    ]
    assert [entry["round"] for entry in entries] == [1, 2]
    assert {entry["plan"]["noise_multiplier"] for entry in entries} == {0.9}


def test_what_nobody_has_is_left_out(done):
    assert done["loss"]["private"] is None
    assert done["erasure"] is None
    rounds = done["loss"]["rounds"]
    assert rounds["change"] == rounds["after"] - rounds["before"] != 0
    assert "What the rounds gave" in render_page(done)
    assert "30% of the devices silent and 10% of the devices hostile" in render_page(done)


def test_a_round_that_breaks_off_after_its_spend_gives_the_same_digest(done, thousand, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    arguments = {"corpus": None, "seed": None, "fresh": False, "name": "broken-thousand", "progress": quiet}
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record_close", stop)
        with pytest.raises(KeyboardInterrupt):
            run_scenario(thousand, **arguments)
    assert run_scenario(thousand, **arguments)["digest"] == done["digest"]
