"""The audit: its attacks on a correct and on a broken mechanism, and that it leaves nothing behind."""

import re
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from fedmem.errors import UsageError
from fedmem.eval import audit as room
from fedmem.eval.one_run import AuditSetup
from fedmem.eval.planted import BUGS, EXACT
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

KEY = bytes(range(32))
FEW = 120
PLAN = PrivacyPlan(0.5, 8, 0.01, 3.13, 30.0, 1e-5, 1000)  # epsilon 2


def stream(label=b"audit"):
    return PrivacyStream(KEY, label)


@cache
def audit_setup():
    return AuditSetup.new(FEW)


def bounds(name):
    return room.OneRun(audit_setup(), PLAN, stream()).measure_bounds(name)[0]


def test_the_correct_mechanism_stays_below_its_claim():
    assert PLAN.epsilon() == pytest.approx(2.0, abs=0.01)
    found, p_value = room.OneRun(audit_setup(), PLAN, stream()).measure_bounds("correct")
    assert max(found.values()) < PLAN.epsilon()
    assert p_value > 1 - room.CONFIDENCE


@pytest.mark.parametrize("bug", ["no_noise", "noise_over_b", "no_clip"])
def test_the_audit_sees_gross_bugs(bug):
    found = room.OneRun(audit_setup(), PLAN, stream()).audit_bug(bug, PLAN.epsilon())
    assert (found["caught"], found["by"]) == (True, "audit")
    assert found["lower_bound"] > PLAN.epsilon()
    assert found["p_value"] < 1 - room.CONFIDENCE


def test_decoding_shows_more_than_products_where_the_noise_is_missing():
    """With 500 canaries, which a block cannot keep apart as well as 120."""
    plan = room.audited_plan(500)
    with BUGS["no_noise"](plan):
        found, _ = room.OneRun(AuditSetup.new(500), plan, stream()).measure_bounds("correct")
    assert found["white_box_decoded"] > found["white_box_product"] + 0.5


def test_the_black_box_has_power_too():
    with BUGS["no_noise"](PLAN):
        assert bounds("correct")["black_box"] > 0.2


def test_coins_and_noise_follow_the_key():
    short = replace(PLAN, steps=2, noise_multiplier=0.5)
    keys = (KEY, KEY, bytes(32))
    found = [
        room.OneRun(audit_setup(), short, PrivacyStream(key, b"audit")).measure_bounds("correct")[0] for key in keys
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def told(**changes):
    """A result as it should be, with changes."""
    base = {
        "claimed": 2.0,
        "lower_bound": 0.5,
        "exact": {"streams": True},
        "planted": {"no_clip": {"caught": True}},
        "rounding": {"updates": {"p_value": 0.5, "impossible": 0, "planted_caught": True}},
        "exposure": {"before": 1.4, "after_dp": 1.5, "after_non_dp": 6.0, "after_erasure": 1.4},
        "verified": True,
    }
    return base | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lower_bound": 2.1}, "above the claim"),
        ({"exact": {"streams": True, "noise_std": False}}, "noise_std"),
        ({"planted": {"no_clip": {"caught": False}}}, "no_clip"),
        ({"rounding": {"final_block": {"p_value": 1e-6, "impossible": 0, "planted_caught": True}}}, "final_block"),
        ({"rounding": {"updates": {"p_value": 0.5, "impossible": 1, "planted_caught": True}}}, "last bits tell"),
        ({"rounding": {"updates": {"p_value": 0.5, "impossible": 0, "planted_caught": False}}}, "does not find float"),
        ({"exposure": told()["exposure"] | {"after_non_dp": 2.0}}, "shows nothing"),
        ({"exposure": told()["exposure"] | {"after_erasure": 1.5}}, "still answers"),
        ({"verified": False}, "still answers"),
    ],
)
def test_each_failure_is_told(changes, words):
    assert room.failures(told()) == []
    (found,) = room.failures(told(**changes))
    assert words in found


@pytest.mark.parametrize("canaries", [0, 499, 2001])
def test_an_audit_of_too_few_or_too_many_is_refused(canaries):
    with pytest.raises(UsageError, match="500 to 2000"):
        room.run_audit(canaries)


def test_the_guide_names_what_there_is():
    """docs/privacy.md: its files exist, and it speaks of every bug and every exact test."""
    root = Path(__file__).parents[2]
    said = (root / "docs" / "privacy.md").read_text("utf-8")
    files = set(re.findall(r"`(fedmem/[\w/]+\.py)`", said))
    assert len(files) >= 8
    assert [name for name in files if not (root / name).is_file()] == []
    assert [name for name in (*BUGS, *EXACT) if f"`{name}`" not in said] == []


@pytest.mark.slow
def test_the_whole_audit(home):
    start = time.process_time()
    data = room.run_audit(500, key=KEY)
    assert data["holds"]
    assert 1.9 < data["claimed"] == PrivacyPlan.from_dict(data["plan"]).epsilon() <= 2.0
    assert data["lower_bound"] == max(data["white_box"], data["black_box"]) < data["claimed"] <= 2.0
    assert {name: verdict["by"] for name, verdict in data["planted"].items()} == {
        "no_noise": "audit",
        "noise_over_b": "audit",
        "no_clip": "audit",
        "batch_clip": "exact: sensitivity",
        "half_noise": "exact: noise_std",
        "reused_stream": "exact: streams",
    }
    assert set(data["rounding"]) == {"updates", "final_block", "federated"}
    assert all(place["planted_caught"] and not place["impossible"] for place in data["rounding"].values())
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert time.process_time() - start < 180  # of one core, because other programs may run
