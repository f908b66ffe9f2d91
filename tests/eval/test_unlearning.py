"""Each metric against a case by hand or a slow obvious one, and the whole measurement on a release of milliseconds."""

import json
import math
from itertools import combinations

import numpy as np
import pytest

from fedmem.errors import UsageError
from fedmem.eval import throwaway as throwaway_module
from fedmem.eval.arms import FORGET, RETAIN
from fedmem.eval.canaries import exposure, plant
from fedmem.eval.unlearning import METRICS, UnlearnPlan, choose_sets, measure_unlearning
from fedmem.routing.embedder import StaticEmbedder
from tests.eval.invented import FACTS

PLAN = UnlearnPlan(authors=1, steps=15, width=48, length=64, canaries=2, digits=1, seed=3)
SEEN = []


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def found(release, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMEM_HOME", str(tmp_path_factory.mktemp("home")))
        public, tell = ["The river runs to the sea."], lambda *told: SEEN.append(told)
        return measure_unlearning(release, StaticEmbedder(), FACTS, PLAN, public, tell)


# The whole measurement


def test_what_is_erased_is_forgotten_to_the_last_bit(found):
    assert found["equal_logits"] is True
    assert found["verified"] is True
    assert found["control_differs"] is True
    assert list(found["metrics"]) == list(METRICS)
    for metric, row in found["metrics"].items():
        assert row["after"] == row["never"], metric


def test_before_the_erasure_the_records_were_memorised(found):
    rows = found["metrics"]
    for metric in ("extraction_strength", "verbmem", "knowmem", "probability", "exposure"):
        assert rows[metric]["before"] > rows[metric]["never"], metric
    assert rows["mia_auc"]["before"] == 1.0
    assert rows["privleak"]["before"] == pytest.approx(-100)
    assert rows["truth_ratio"]["before"] < rows["truth_ratio"]["never"]
    assert rows["forget_quality"]["before"] == pytest.approx(0.1)  # three texts against three, wholly apart: 2 / 20
    assert (rows["privleak"]["never"], rows["forget_quality"]["never"]) == (0, 1)


def test_what_remains_is_untouched(found):
    for metric in ("retain_knowmem", "model_utility", "retain_loss", "public_loss"):
        assert len(set(found["metrics"][metric].values())) == 1, metric
    assert 0 < found["metrics"]["model_utility"]["after"] < 1


def test_a_measurement_without_dp_says_so(found):
    assert (found["unsafe_no_dp"], found["epsilon"]) == (True, None)
    assert found["unsafe_reason"]


def test_no_text_is_in_the_result(found):
    told = json.dumps(found)
    words = {word for pairs in FACTS.values() for pair in pairs for text in pair for word in text.split()}
    assert not [word for word in words if len(word) > 3 and word in told]


def test_an_erasure_that_leaves_the_block_is_noticed_and_the_rest_repeats(release, found, monkeypatch):
    monkeypatch.setattr(throwaway_module.ThrowawayVault, "erase", lambda *_: True)
    told = measure_unlearning(release, StaticEmbedder(), FACTS, PLAN)
    assert (told["equal_logits"], told["control_differs"]) == (False, True)
    assert told["metrics"]["mia_auc"]["after"] == 1.0
    assert told["metrics"].pop("public_loss") == {"before": None, "after": None, "never": None}
    for metric, row in told["metrics"].items():
        expected = found["metrics"][metric]
        assert (row["before"], row["never"]) == (expected["before"], expected["never"]), metric


def test_progress_counts_up(found):
    learned = [(done, total) for phase, done, total, _ in SEEN if phase == "learn"]
    assert learned == [(n, 3 * PLAN.steps) for n in range(1, 3 * PLAN.steps + 1)]
    measured = [(done, total, note) for phase, done, total, note in SEEN if phase == "measure"]
    assert measured == [(0, 3, "before"), (1, 3, "after"), (2, 3, "never"), (3, 3, "")]


# Who is in which set


def test_sets_share_no_author_and_follow_from_the_seed():
    facts = {str(n): [(f"question {n}", f"answer {n}")] for n in range(20)}
    sets = choose_sets(facts, UnlearnPlan(authors=4))
    sides = [{question for question, _ in pairs} for pairs in (sets.forget, sets.retain, sets.holdout)]
    assert [len(side) for side in sides] == [4, 4, 4]
    assert not any(one & other for one, other in combinations(sides, 2))
    shuffled = dict(reversed(facts.items()))
    assert choose_sets(shuffled, UnlearnPlan(authors=4)) == sets
    assert choose_sets(facts, UnlearnPlan(authors=4, seed=8)).forget != sets.forget
    assert sets.texts(FORGET)[:4] == [" ".join(pair) for pair in sets.forget]
    assert sets.texts(FORGET)[4:] == [canary.text for canary in sets.canaries]
    assert sets.texts(RETAIN) == [" ".join(pair) for pair in sets.retain]


def test_too_few_authors():
    with pytest.raises(UsageError, match="6 are needed"):
        choose_sets(FACTS, UnlearnPlan(authors=2))


@pytest.mark.parametrize("bad", [{"authors": 0}, {"steps": 0}, {"length": 15}, {"canaries": 13}, {"digits": 5}])
def test_bad_plans(bad):
    with pytest.raises(UsageError, match="unlearning plan"):
        UnlearnPlan(**bad)


# Canaries


def test_exposure_by_hand():
    assert exposure([5, 1, 2, 3, 4, 6, 7, 8], secret=1) == 3  # first of eight
    assert exposure([5, 1, 2, 3, 4, 6, 7, 8], secret=2) == 2  # second
    assert exposure([5, 1, 2, 3, 4, 6, 7, 8], secret=7) == 0  # last
    assert exposure([1.0] * 8, secret=3) == 0  # a tie exposes nothing


def test_exposure_of_what_was_never_seen_is_1_44_bits():
    losses = np.arange(1000.0)
    mean = np.mean([exposure(losses, secret) for secret in range(1000)])
    assert mean == pytest.approx(math.log2(math.e), abs=0.01)


def test_canaries_are_drawn_from_all_numbers():
    canaries = plant(3, digits=2, seed=5)
    assert canaries == plant(3, digits=2, seed=5) != plant(3, digits=2, seed=6)
    assert len({canary.prefix for canary in canaries}) == 3
    assert all(len(set(canary.candidates)) == 100 for canary in canaries)
    drawn = np.array([plant(1, 1, seed)[0].secret for seed in range(400)])
    assert np.bincount(drawn, minlength=10).min() > 15  # 40 expected of each
