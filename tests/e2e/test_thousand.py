"""The scenario crowd in small: noise on, a device-level ε, its ledger, and the same digest after a break."""

import json
from pathlib import Path

import pytest

from fedmem import paths
from fedmem.federation.journal import Journal
from fedmem.sim.run import run

MINI = Path(__file__).with_name("mini.toml")


def quiet(*_):
    """Say nothing."""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A scenario file: 40 devices, Poisson cohorts, noise, level-1 blocks only, nothing private."""
    text = MINI.read_text(encoding="utf-8")
    before, after = text[: text.index("[[private]]")], text[text.index("[anchor]") :]
    text = before.replace("devices = 3", "devices = 40") + after
    text = text.replace('parts = ["anchor", "level-1", "generic"]', 'parts = ["level-1"]').replace(
        "releases = 2", "releases = 1"
    )
    text = text.replace(
        'unsafe_no_dp = true\nunsafe_reason = "a test"',
        "noise_multiplier = 0.9\nsampling_rate = 0.3\nepsilon_max = 10.0",
    )
    path = tmp_path_factory.mktemp("crowd") / "small_crowd.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def done(home, crowd):
    return run(crowd, corpus=None, seed=None, fresh=False, name="crowd", progress=quiet)


def test_noise_is_on_and_every_round_is_in_the_ledger(done):
    assert 0 < done["epsilon"]["device"] <= 10
    assert "unsafe" not in done["epsilon"]["device_reason"]
    assert done["epsilon"]["coordinator"] is None
    entries = [
        json.loads(line)["body"] for line in (paths.runs_dir() / "crowd" / "ledger.jsonl").read_text().splitlines()
    ]
    assert [entry["round"] for entry in entries] == [1, 2]
    assert {entry["plan"]["noise_multiplier"] for entry in entries} == {0.9}


def test_what_a_crowd_does_not_have_is_left_out(done):
    assert done["loss"]["private"] is None
    assert done["erasure"] is None
    assert set(done["loss"]["rounds"]) == {"before", "after"}
    assert done["loss"]["rounds"]["before"] != done["loss"]["rounds"]["after"]


def test_a_round_that_breaks_off_after_its_spend_gives_the_same_digest(done, crowd, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    arguments = {"corpus": None, "seed": None, "fresh": False, "name": "broken-crowd", "progress": quiet}
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "closed", stop)
        with pytest.raises(KeyboardInterrupt):
            run(crowd, **arguments)
    assert run(crowd, **arguments)["digest"] == done["digest"]
