"""A comparison names what differs, claims nothing without seeds, shows nothing private, and refuses odd runs."""

import json
import subprocess
import sys

import pytest

from fedmem.errors import UsageError
from fedmem.sim import compare_plots
from fedmem.sim.compare import compare
from fedmem.sim.compare_page import render_page
from tests.sim.finished import REASON, SECRET, Put


def test_only_what_differs_is_named_and_dotted(put: Put) -> None:
    names = put("a"), put("b", {"config.federation.rounds": 8, "config.private": [], "config.about": "other words"})
    assert compare(names)["differs"] == {
        "federation.rounds": {"a": 2, "b": 8},
        "private.0.topic": {"a": "notes", "b": None},
        "private.0.devices": {"a": [0], "b": None},
        "private.0.records": {"a": 40, "b": None},
        "private": {"a": None, "b": []},
    }


def test_figures_are_those_of_the_runs(put: Put) -> None:
    data = compare([put("a"), put("b", {"loss.public.fetched": 4.25, "epsilon.device": 9.5})])
    one, two = data["runs"]
    assert (one["name"], one["seed"], one["devices"], one["rounds"]) == ("a", 7, 4, 4)
    assert (one["loss"]["public"]["fetched"], two["loss"]["public"]["fetched"]) == (4.5, 4.25)
    assert "after_erasure" not in one["loss"]["private"]
    assert one["bytes"] == {"per_device_round": 900, "per_device_up": 800.0, "per_device_down": 200.0}
    assert (one["epsilon"]["device"], two["epsilon"]["device"]) == (None, 9.5)
    assert one["epsilon"]["device_reason"] == REASON


def test_tokens_count_every_batch_of_every_device(put: Put) -> None:
    curve = compare([put("a"), put("b")])["runs"][0]["curve"]
    central, rounds = 4 * 10, 4 * 0.5 * 3 * 2 * 10  # tokens of a step, and of a round of two of four devices
    expected = [6 * central, 12 * central, (12 + 5) * central, 18 * central + 2 * rounds, 18 * central + 4 * rounds]
    assert [point["tokens"] for point in curve] == expected
    assert [point["round"] for point in curve] == [None, None, None, 2, 4]


def test_tokens_of_rounds_that_grow(put: Put) -> None:
    grown = {"config.federation.first_steps": 1, "config.federation.steps": 5}
    curve = compare([put("a", grown), put("b")])["runs"][0]["curve"]
    step = 4 * 0.5 * 2 * 10  # tokens of one step on each of two devices
    assert [point["tokens"] - 18 * 40 for point in curve[-2:]] == [(1 + 2) * step, (1 + 2 + 4 + 5) * step]


def test_a_phase_without_steps_and_private_points_are_left_out(put: Put) -> None:
    points = [
        {"phase": "elsewhere", "step": 1, "loss": 1.0, "split": "heldout"},
        {"phase": "pretrain", "step": 1, "loss": 2.0, "split": "private"},
        {"phase": "pretrain", "step": 1, "loss": 3.0, "split": "heldout"},
    ]
    curve = compare([put("a", {"loss.by_phase": points}), put("b")])["runs"][0]["curve"]
    assert [point["loss"] for point in curve] == [3.0]


def test_runs_of_other_seeds_are_one_setting(put: Put) -> None:
    names = put("a"), put("b", seed=8), put("c", {"config.cotrain.batch": 8}), put("d", {"config.name": "x"}, seed=9)
    assert [row["setting"] for row in compare(names)["runs"]] == ["A", "A", "B", "A"]


def test_digests_tell_repeats_from_others(put: Put) -> None:
    notes = compare([put("a"), put("b"), put("c", {"digest": "ff" * 32}), put("d", seed=8)])["notes"]
    assert sum("a and b have equal digests" in note for note in notes) == 1
    assert sum("have the same inputs but different digests" in note for note in notes) == 2  # a and c, b and c


def test_a_users_text_is_a_number_and_its_private_losses_do_not_appear(put: Put) -> None:
    own = {"corpus": "user", "loss.private": {"with": 3.125}}
    names = [
        put("a", own, source=f"/home/{SECRET}.jsonl"),
        put("b", own, source="/nightjar"),
        put("c"),
        put("d", own, source="/nightjar"),
    ]
    data = compare(names)
    assert list(data["differs"]["text"].values()) == [
        "the user's own, file 1", "the user's own, file 2", "generated", "the user's own, file 2",
    ]  # fmt: skip
    assert [row["setting"] for row in data["runs"]] == ["A", "B", "C", "B"]
    assert ["private" in row["loss"] for row in data["runs"]] == [False, False, True, False]
    shown = json.dumps(data) + render_page(data) + compare_plots.draw_picture(data["runs"])
    for private in (SECRET, "3.125", "4711", "/nightjar", "receipt"):
        assert private not in shown


def test_more_settings_than_a_picture_holds(put: Put) -> None:
    names = [put(f"r{n}", {"config.cotrain.batch": n + 1}) for n in range(17)]
    assert len({row["setting"] for row in compare(names[:16])["runs"]}) == 16
    with pytest.raises(UsageError, match="at most 16"):
        compare(names)


def test_a_comparison_loads_nothing_heavy() -> None:
    code = "import sys, fedmem.sim.compare, fedmem.sim.compare_tables; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "flwr", "matplotlib", "scipy"} & set(names)
