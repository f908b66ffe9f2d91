"""A comparison names what differs, claims nothing without seeds, shows nothing private, and refuses odd runs."""

import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fedmem.errors import FedmemError, NothingMatched, UsageError, VerificationFailed, VersionMismatch
from fedmem.pages import FOLDER
from fedmem.sim import compare_plots, plots
from fedmem.sim.compare import compare
from fedmem.sim.compare_page import render_page
from fedmem.sim.compare_tables import make_tables
from fedmem.sim.seeds import confidence_interval

Put = Callable[..., str]
SECRET = "zebrafinch-4711"
REASON = "unsafe_no_dp = true: three are too few to hide in"
T_975 = {2: 12.7062, 3: 4.3027}  # Student's 97.5 % point for so many seeds, from a printed table


def run_json(seed: int = 7) -> dict[str, Any]:
    """A finished run with everything that a comparison shows."""
    points = [
        ("pretrain", 6, 6.0),
        ("pretrain", 12, 5.8),
        ("cotrain", 5, 5.7),
        ("rounds_1", 2, 5.6),
        ("rounds_2", 4, 5.5),
    ]
    return {
        "name": "an old name",
        "scenario": "mini",
        "seed": seed,
        "state": "completed",
        "corpus": "generated",
        "config": {
            "name": "mini",
            "about": "small",
            "seed": 1,
            "public": {"devices": 4, "documents": 300},
            "anchor": {"preset": "nano", "vocabulary": 512, "length": 10},
            "pretrain": {"steps": 12, "batch": 4},
            "cotrain": {"steps": 6, "batch": 4},
            "federation": {"rounds": 2, "steps": 3, "batch": 2, "sampling_rate": 0.5},
            "private": [{"topic": "notes", "devices": [0], "records": 40}],
        },
        "attribution": ["Leads of an encyclopedia"],
        "parameters": 139584,
        "loss": {
            "public": {"anchor": 5.0, "fetched": 4.5},
            "rounds": {"before": 4.75, "after": 4.5},
            "private": {"without": 6.0, "with": 5.0, "after_erasure": None},
            "private_blocks": [],
            "by_phase": [{"phase": p, "step": s, "loss": x, "split": "heldout"} for p, s, x in points],
        },
        "epsilon": {
            "device": None,
            "device_reason": REASON,
            "device_delta": 1e-5,
            "coordinator": None,
            "coordinator_reason": "infinite: it sees each update",
            "blocks_max": 7.5,
            "blocks": [{"device": "device-0", "topic": SECRET}],
        },
        "bytes": {"per_device_round": 900, "rounds": [{"round": n, "up": 800, "down": 200} for n in (1, 2, 3, 4)]},
        "erasure": {"receipt": f"/home/{SECRET}/r.json"},
        "placement": {"private": 4711},
        "digest": f"{seed:02d}" * 32,
        "peak_rss_mb": 812.5,
        "seconds": {"total": 10.0},
    }


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Write a run folder; `changes` are values by dotted path."""
    monkeypatch.setenv("FEDMEM_RUNS", str(tmp_path / "runs"))

    def write(name: str, changes: dict[str, Any] | None = None, *, seed: int = 7, source: str | None = None) -> str:
        run = run_json(seed)
        for path, value in (changes or {}).items():
            *steps, last = path.split(".")
            place = run
            for step in steps:
                place = place[step]
            place[last] = value
        root = tmp_path / "runs" / name
        (root / "state").mkdir(parents=True)
        inputs = {"scenario": run["config"], "seed": seed, "corpus": source}
        (root / "state" / "inputs.json").write_text(json.dumps(inputs))
        (root / "run.json").write_text(json.dumps(run))
        return name

    return write


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


@pytest.mark.parametrize("seeds", [2, 3])
def test_difference_and_interval_are_students_over_pairs(put: Put, seeds: int) -> None:
    gains, names = [0.1, 0.3, 0.2][:seeds], []
    for seed, gain in enumerate(gains):
        level = 5.0 + seed  # far larger than the gain: only pairs show it
        names.append(put(f"a{seed}", {"loss.public.fetched": level}, seed=seed))
        names.append(put(f"b{seed}", {"loss.public.fetched": level - gain, "config.cotrain.batch": 8}, seed=seed))
    (found,) = compare(names)["differences"]
    middle = sum(gains) / seeds
    half = T_975[seeds] * math.sqrt(sum((g - middle) ** 2 for g in gains) / (seeds - 1) / seeds)
    assert (found["setting"], found["against"], found["seeds"]) == ("B", "A", list(range(seeds)))
    assert found["loss"]["public"]["fetched"] == pytest.approx(-middle)
    assert found["interval"]["loss"]["public"]["fetched"] == pytest.approx([-middle - half, -middle + half], rel=1e-4)


def test_the_interval_covers_as_often_as_it_says() -> None:
    import numpy as np

    draws = np.random.default_rng(5).normal(size=(2000, 3))
    hits = sum(low < 0 < high for low, high in (confidence_interval(list(map(float, row))) for row in draws))
    assert 0.93 < hits / 2000 < 0.97


def claimed_against(
    put: Put, changes: dict[str, Any], seeds: tuple[tuple[int, ...], tuple[int, ...]]
) -> dict[str, Any]:
    """Setting A at the first seeds, B with `changes` at the second."""
    names = [put(f"a{n}", seed=seed) for n, seed in enumerate(seeds[0])]
    return compare(names + [put(f"b{n}", changes, seed=seed) for n, seed in enumerate(seeds[1])])


@pytest.mark.parametrize("seeds", [((1,), (1,)), ((1, 2), (3, 4)), ((1, 2), (2, 3)), ((1, 1), (1, 1))])
def test_fewer_than_two_seeds_in_common_claim_nothing(put: Put, seeds: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    data = claimed_against(put, {"config.cotrain.batch": 8}, seeds)
    assert data["differences"] == []
    assert "No difference between A and B is claimed" in data["notes"][0]
    assert "--seed" in data["notes"][0]


@pytest.mark.parametrize("key", ["config.public.documents", "config.anchor.vocabulary", "config.anchor.length"])
def test_losses_of_other_text_or_tokens_are_not_subtracted(put: Put, key: str) -> None:
    data = claimed_against(put, {key: 99}, ((1, 2), (1, 2)))
    assert data["differences"] == []
    assert key.removeprefix("config.") in data["notes"][0]


def test_private_losses_of_other_private_text_are_not_subtracted(put: Put) -> None:
    ((same,), (other,)) = (
        claimed_against(lambda name, *a, _p=prefix, **k: put(_p + name, *a, **k), changes, ((1, 2), (1, 2)))[
            "differences"
        ]
        for prefix, changes in (("s", {"config.cotrain.batch": 8}), ("o", {"config.private": []}))
    )
    assert set(same["loss"]) == {"public", "rounds", "private"}
    assert set(other["loss"]) == set(other["interval"]["loss"]) == {"public", "rounds"}


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


def test_other_own_texts_are_not_subtracted(put: Put) -> None:
    names = [
        put(f"{file}{seed}", {"corpus": "user"}, seed=seed, source=f"/{file}")
        for file in ("one", "two")
        for seed in (1, 2)
    ]
    data = compare(names)
    assert (data["differences"], "other text" in data["notes"][0]) == ([], True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config.public", {}),
        ("config.anchor", None),
        ("loss.public", 5.0),
        ("loss.by_phase", [{"phase": "pretrain", "step": 1, "loss": "5", "split": "heldout"}]),
        ("loss.by_phase", [5]),
        ("epsilon.device", "8"),
        ("epsilon", None),
        ("bytes.rounds", [{"round": 1, "up": True, "down": 2}]),
        ("bytes.rounds", 5),
        ("digest", None),
        ("seed", "7"),
        ("seconds", []),
    ],
)
def test_another_format_is_refused_and_says_where(put: Put, path: str, value: Any) -> None:
    with pytest.raises(VersionMismatch, match=f"its {re.escape(path)}"):
        compare([put("a"), put("b", {path: value})])


def test_no_object_is_another_format(put: Put, tmp_path: Path) -> None:
    put("a"), put("b")
    (tmp_path / "runs" / "b" / "run.json").write_text("[]")
    with pytest.raises(VersionMismatch):
        compare(["a", "b"])


def test_runs_that_cannot_be_compared(put: Put, tmp_path: Path) -> None:
    put("a"), put("b"), put("broken"), put("unfinished")
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    (tmp_path / "runs" / "unfinished" / "run.json").unlink()
    wrong: list[tuple[list[str], type[FedmemError], str]] = [
        ([], UsageError, "two runs"),
        (["a"], UsageError, "two runs"),
        (["a", "b", "a"], UsageError, "named twice"),
        (["a", "unfinished"], UsageError, "has not finished"),
        (["a", "nosuch"], NothingMatched, "There are: "),
        (["a", "../a"], NothingMatched, "no run"),
        (["a", "broken"], VerificationFailed, "damaged"),
    ]
    for names, error, said in wrong:
        with pytest.raises(error, match=said):
            compare(names)


def test_more_settings_than_a_picture_holds(put: Put) -> None:
    names = [put(f"r{n}", {"config.cotrain.batch": n + 1}) for n in range(17)]
    assert len({row["setting"] for row in compare(names[:16])["runs"]}) == 16
    with pytest.raises(UsageError, match="at most 16"):
        compare(names)


def test_tables_say_what_the_data_say(put: Put) -> None:
    names = [put(f"a{s}", seed=s) for s in (1, 2)]
    names += [put(f"b{s}", {"loss.public.fetched": 4.25, "config.cotrain.batch": 8}, seed=s) for s in (1, 2)]
    rows = {(table.title, row[0]): list(row[1:]) for table in make_tables(compare(names)) for row in table.rows}
    assert rows["What differs", "cotrain.batch"] == ["4", "4", "8", "8"]
    assert rows["Held-out loss", "public, fetched blocks"] == ["4.500", "4.500", "4.250", "4.250"]
    assert rows["Privacy", "ε against readers of released anchors"] == ["∞"] * 4
    assert rows["Privacy", "ε against the coordinator"] == ["∞"] * 4
    assert rows["Bytes", "sent by a device, whole run"] == ["800 B"] * 4
    (difference,) = (
        row
        for table in make_tables(compare(names))
        if table.id == "differences"
        for row in table.rows
        if "fetched" in row[1]
    )
    assert list(difference) == ["B − A", "public, fetched blocks", "−0.2500", "−0.2500 to −0.2500", "1, 2"]


def test_the_page_loads_nothing_escapes_and_repeats_the_reason(put: Put) -> None:
    evil = '<script>alert("x")</script>'
    data = compare([put("a", {"scenario": evil, "config.about": evil}), put("b", {"config.anchor.preset": evil})])
    html = render_page(data)
    assert "<script" not in html
    assert "alert" in html
    assert re.findall(r"url\((?!#)|@import|https?:", html) == []
    banner = html.split('class="banner"')[1].split("</p>")[0]
    assert "A: three are too few to hide in; B: three" in banner
    assert html.count('<svg role="img"') == 1
    assert render_page(data) == html


def test_the_page_of_private_settings_has_no_banner(put: Put) -> None:
    noisy = {"epsilon.device": 9.0, "epsilon.device_reason": "Poisson sampling"}
    assert 'class="banner"' not in render_page(compare([put("a", noisy), put("b", noisy)]))


def test_the_picture_is_whole_on_its_own(put: Put) -> None:
    names = [put("a<b&c"), put("b", seed=8), put("c", {"config.cotrain.batch": 8, "loss.by_phase": []})]
    rows = compare(names)["runs"]
    svg = compare_plots.draw_picture(rows)
    tree = ElementTree.fromstring(svg)
    said = "".join(tree.itertext())
    assert "A: mini, seeds 7, 8" in said
    assert "held-out loss, nats a token" in said
    assert "tokens trained on, thousands" in said
    assert compare_plots.LIGHT["--series-1"] in svg
    assert "var(" not in svg
    assert not any(colour in svg for colour in plots.VARIABLES)
    assert re.findall(r'href="(?!#)|url\((?!#)|@import', svg) == []
    assert compare_plots.draw_picture(copy.deepcopy(rows)) == svg
    odd = compare_plots.draw_picture(compare(["a<b&c", put("模型$1$", seed=9)])["runs"])
    assert "seeds 7, 9" in "".join(ElementTree.fromstring(odd).itertext())
    odd = compare_plots.draw_picture(compare(["c", "模型$1$"])["runs"])
    assert "B: 模型$1$" in "".join(ElementTree.fromstring(odd).itertext())


def test_the_pictures_colours_are_the_pages() -> None:
    root = (FOLDER / "style.css").read_text().split(":root {")[1].split("}")[0]
    said = dict(re.findall(r"(--[\w-]+): (#\w+)", root))
    assert {name: said[name] for name in compare_plots.LIGHT} == compare_plots.LIGHT
    assert set(compare_plots.LIGHT) == set(plots.VARIABLES.values())


def test_a_comparison_loads_nothing_heavy() -> None:
    code = "import sys, fedmem.sim.compare, fedmem.sim.compare_tables; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "flwr", "matplotlib", "scipy"} & set(names)
