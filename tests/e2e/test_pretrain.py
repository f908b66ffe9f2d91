"""The scenario pretrain in small: random weights, drawn cohorts, faults, and central training beside it."""

import json
import math
from pathlib import Path

import pytest

from fedmem import paths
from fedmem.coordinator.journal import Journal
from fedmem.sim.compare import compare
from fedmem.sim.folder import RunFolder
from fedmem.sim.report import render_page
from fedmem.sim.run import run_scenario

MINI = Path(__file__).with_name("mini.toml")
LEVELS = 'parts = ["anchor", "level-1", "level-2", "level-3", "generic"]'


def quiet(*_):
    """Say nothing."""


def changed(text, *pairs):
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Scenario files: six devices, three a round, from random weights; and the same text pooled."""
    folder, text = tmp_path_factory.mktemp("pretrain"), MINI.read_text(encoding="utf-8")
    text = text[: text.index("[[private]]")] + text[text.index("[anchor]") :]
    text = changed(
        text,
        ("devices = 3", "devices = 6"),
        ("coordinator_share = 0.5", "coordinator_share = 0.3"),
        ("length = 48", "length = 48\ncontrol = false"),
        ("steps = 12\n", "steps = 0\n"),
        ('parts = ["anchor", "level-1", "generic"]', LEVELS),
        ("releases = 2", "releases = 1"),
        ("rounds = 2", "rounds = 3"),
        ("lr = 3e-4\nmemory_lr = 1e-3\nserver_lr = 1.0", "lr = 5e-3\nmemory_lr = 5e-3\nserver_lr = 0.7"),
    )
    federated = changed(
        text,
        ("steps = 6\n", "steps = 0\n"),
        (
            "clip = 10.0\n",
            'clip = 100.0\noptimiser = "diloco"\nmomentum = 0.5\ncohort_size = 3\nsilent = 0.4\nfinal = 0.5\n'
            "first_steps = 1\n",
        ),
    )
    central = changed(
        text,
        ("steps = 6\nbatch = 4\nlr = 5e-4\n", "steps = 5\nbatch = 6\nlr = 5e-3\npooled = true\n"),
        ("rounds = 3", "rounds = 0"),
    )
    (folder / "small.toml").write_text(federated, encoding="utf-8")
    (folder / "small_central.toml").write_text(central, encoding="utf-8")
    return folder


def go(files, name, scenario="small"):
    return run_scenario(str(files / f"{scenario}.toml"), corpus=None, seed=None, fresh=False, name=name, progress=quiet)


@pytest.fixture(scope="module")
def done(home, files):
    return go(files, "pretrained")


@pytest.fixture(scope="module")
def central(home, files):
    return go(files, "central", "small_central")


def test_rounds_alone_learn_from_random_weights(done):
    assert done["loss"]["rounds"]["before"] > math.log(512) - 0.2
    assert done["loss"]["rounds"]["after"] < done["loss"]["rounds"]["before"] - 0.1
    assert done["loss"]["rounds"]["change"] == done["loss"]["rounds"]["after"] - done["loss"]["rounds"]["before"]
    points = [point for point in done["loss"]["by_phase"] if point["phase"] == "rounds_1"]
    assert [point["step"] for point in points] == [1, 2, 3]
    assert "anchor" not in done["loss"]["public"]
    counted = [row["counted"] for row in done["bytes"]["rounds"]]
    assert max(counted) <= 3
    assert sum(counted) < 9, "nobody was silent"


def test_bytes_are_held_against_exchange_at_each_step(done):
    told = done["bytes"]
    journal = Journal(paths.runs_dir() / "pretrained" / "state" / "rounds-memory")
    coordinates = sum(value.size for value in journal.params_at(3).values())
    assert told["coordinates"] == coordinates
    taken = [row["counted"] * steps for row, steps in zip(told["rounds"], (1, 2, 2), strict=True)]
    answers = sum(row["counted"] for row in told["rounds"])
    assert told["per_step_exchange"] == (2 + 2) * coordinates * sum(taken) // answers
    assert told["below_per_step"] == told["per_step_exchange"] / told["per_device_round"]
    # Two bytes down and four up for the steps of an answer, two down and two up each; some more for lost requests.
    most = (2 + 2) * sum(taken) / answers / 6
    assert 0.75 * most < told["below_per_step"] < most


def test_the_same_seed_gives_the_same_digest(done, files):
    assert go(files, "federated-again")["digest"] == done["digest"]


def test_central_training_has_no_round_and_the_same_text(done, central):
    assert central["bytes"]["rounds"] == []
    assert central["bytes"]["below_per_step"] is None
    assert central["loss"]["rounds"] == {}
    assert central["attribution"] == done["attribution"]
    assert central["loss"]["public"]["fetched"] < done["loss"]["rounds"]["before"] - 0.05
    facts = [RunFolder(paths.runs_dir() / name).facts()["prepare"]["placement"] for name in ("pretrained", "central")]
    assert facts[0] == facts[1]
    assert "What the rounds gave" in render_page(done)
    assert "What the rounds gave" not in render_page(central)
    json.dumps(central, allow_nan=False)


def test_a_comparison_puts_them_side_by_side_at_equal_tokens(done, central):
    found = compare(["central", "pretrained"])
    # One seed claims nothing; that they have other numbers of devices is no obstacle.
    assert "same seed once" in found["notes"][0]
    tokens = {row["name"]: row["curve"][-1]["tokens"] for row in found["runs"]}
    assert tokens["pretrained"] == tokens["central"] == (1 + 2 + 2) * 6 * 48
