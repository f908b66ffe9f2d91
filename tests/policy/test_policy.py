"""Placement: the floor always joins, everything only tightens, and real text lands where it should."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmem.errors import UsageError
from fedmem.policy import policy as policy_module
from fedmem.policy.files import read_policy
from fedmem.policy.policy import FederationLimits, Policy
from fedmem.sim.sources import patients, persons, wikipedia

EMPTY = 'schema = "fedmem.policy/1"\nname = "empty"\n'
LAX = EMPTY.replace("empty", "lax") + "".join(
    f'[topics.{topic}]\nepsilon = 90.0\ndelta = 1e-5\nplacement = "shared"\n'
    for topic in ("health", "finance", "notes")
)
FLOOR_PRIVATE = [
    "My doctor says that I have diabetes and must take insulin.",
    "My salary was paid into my bank account, IBAN GB33 BUKB 2020 1555 5555 55.",
    "The password for the photo account is tulip-soup-42.",
    "密码是秘密",
    "",
]
PUBLIC = [
    "The Loire is the longest river in France and flows into the Atlantic Ocean.",
    "In mathematics, a prime number has exactly two positive divisors.",
]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load("default")


def policy_file(folder: Path, text: str) -> Path:
    (folder / "policy.toml").write_text(text)
    return folder / "policy.toml"


@pytest.mark.parametrize("text", [EMPTY, LAX])
def test_a_policy_cannot_remove_what_the_floor_gives(tmp_path: Path, text: str) -> None:
    signed = Policy.load(policy_file(tmp_path, text))
    assert [d.placement for d in signed.place_many(FLOOR_PRIVATE)] == ["private"] * len(FLOOR_PRIVATE)
    assert [d.placement for d in signed.place_many(PUBLIC)] == ["shared"] * len(PUBLIC)


def test_a_policy_can_add_privacy(tmp_path: Path) -> None:
    more = EMPTY + '[topics.rivers]\nepsilon = 1.0\ndelta = 1e-6\n[[topics.rivers.rules]]\nkind = "keywords"\n'
    decision = Policy.load(policy_file(tmp_path, more + 'words = ["river"]\n')).place(PUBLIC[0])
    assert (decision.placement, decision.topic, decision.rule) == ("private", "rivers", "empty.rivers.keywords")


def test_the_smallest_budget_wins(tmp_path: Path) -> None:
    assert Policy.load(policy_file(tmp_path, LAX)).topics["health"].epsilon == 8.0
    strict = EMPTY + '[topics.health]\nepsilon = 1.5\ndelta = 1e-7\ngranularity = "cluster"\n'
    topic = Policy.load(policy_file(tmp_path, strict)).topics["health"]
    assert (topic.epsilon, topic.delta, topic.granularity) == (1.5, 1e-7, "cluster")


def test_a_declared_topic_only_tightens(policy: Policy) -> None:
    assert policy.place(PUBLIC[0], declared="health").topic == "health"
    assert policy.place(FLOOR_PRIVATE[0], declared=None).placement == "private"
    assert policy.place(FLOOR_PRIVATE[0], declared="notes").topic == "notes"
    for unknown in ("shared", "public", "helth", ""):
        with pytest.raises(UsageError):
            policy.place(PUBLIC[0], declared=unknown)


def test_a_private_sentence_in_a_long_public_text_is_found(policy: Policy) -> None:
    long = (PUBLIC[0] + " ") * 60
    assert policy.place(long).placement == "shared"
    assert policy.place(long + "The patient is presenting with chest pain and hypertension.").placement == "private"


def test_a_seed_phrase_of_the_floor_judges_by_meaning(tmp_path: Path) -> None:
    text = "The monthly payment on the mortgage loan is due at the bank."
    for rules in (Policy.load("floor"), Policy.load(policy_file(tmp_path, EMPTY))):
        assert rules.place(text).rule == "floor.finance.seeds"


def test_a_chosen_policy_s_seeds_find_a_passage_of_a_long_text(tmp_path: Path) -> None:
    seeds = '[topics.rivers]\nepsilon = 1.0\ndelta = 1e-6\n[[topics.rivers.rules]]\nkind = "seeds"\nthreshold = 0.9\n'
    rivers = Policy.load(policy_file(tmp_path, EMPTY + seeds + f'phrases = ["{PUBLIC[0]}"]\n'))
    assert rivers.place(PUBLIC[0]).rule == "empty.rivers.seeds"
    assert rivers.place(PUBLIC[1]).placement == "shared"
    assert rivers.place(PUBLIC[1] * 30 + PUBLIC[0] * 30 + PUBLIC[1] * 30).topic == "rivers"


def test_a_batch_equals_its_items(policy: Policy) -> None:
    texts = [*FLOOR_PRIVATE, *PUBLIC, PUBLIC[0] * 30]
    alone = [policy.place(text) for text in texts]
    assert policy.place_many(texts) == alone
    assert policy.place_many([]) == []


def test_each_text_needs_its_declared_topic_or_none(policy: Policy) -> None:
    with pytest.raises(UsageError, match="for each text"):
        policy.place_many(PUBLIC, ["health"])


def test_a_decision_quotes_nothing(policy: Policy) -> None:
    for text in [*FLOOR_PRIVATE, "Call Zebulon on (212) 555-0199.", "zebulon@example.org"]:
        rule = policy.place(text).rule
        assert rule.split(".")[0] in ("floor", "default", "declared")
        assert not {"zebulon", "tulip", "gb33", "diabetes"} & set(rule.replace(".", " ").lower().split())


def test_the_digest_names_the_files(policy: Policy, tmp_path: Path) -> None:
    assert policy.digest == Policy.load("default").digest != Policy.load(policy_file(tmp_path, EMPTY)).digest


@pytest.mark.parametrize("topic", ["health", "finance", "notes"])
def test_generated_private_text_is_private_under_its_topic(policy: Policy, topic: str) -> None:
    texts = (
        [record.text for record in patients.generate(60, seed=3)]
        if topic == "health"
        else [record.text for seed in (1, 2) for record in persons.generate(topic, 300, seed=seed)]
    )
    decisions = policy.place_many(texts)
    assert sum(d.placement == "private" for d in decisions) >= 0.97 * len(texts)
    assert sum(d.topic == topic for d in decisions) >= 0.90 * len(texts)


def test_most_public_text_stays_shared(policy: Policy) -> None:
    texts = [document.text for document in wikipedia.load()[::20]]
    shared = sum(decision.placement == "shared" for decision in policy.place_many(texts))
    assert shared >= 0.85 * len(texts)


@pytest.mark.parametrize(
    "text",
    ["Take two tablets of ibuprofen after breakfast.", "Insulin: 12 units before dinner.", "One dose every 6 hours."],
)
def test_how_a_medicine_is_taken_is_health(text):
    decision = Policy.load().place(text)
    assert (decision.placement, decision.topic) == ("private", "health")


def test_a_medicine_alone_is_no_dosage():
    assert Policy.load().place("Aspirin was first sold by a factory on the Rhine.").placement == "shared"


class TestFederation:
    """The limits of a device in all its federations together."""

    @pytest.fixture
    def limits(self, tmp_path: Path) -> Callable[[str], FederationLimits]:
        def load(table: str) -> FederationLimits:
            file = tmp_path / "own.toml"
            file.write_text(f'schema = "fedmem.policy/1"\nname = "own"\n{table}')
            return Policy.load(file).federation

        return load

    def test_the_floor_sets_the_default(self, limits) -> None:
        for found in (Policy.load().federation, limits(""), limits("[federation]")):
            assert found == FederationLimits(epsilon=10.0, delta=1e-5, allow_no_dp=False)

    def test_a_policy_can_name_less_and_never_more(self, limits) -> None:
        assert limits("[federation]\nepsilon = 2.5\ndelta = 1e-7") == FederationLimits(2.5, 1e-7, allow_no_dp=False)
        assert limits("[federation]\nepsilon = 50.0").epsilon == 10.0

    def test_plans_without_noise_need_one_consent_and_no_objection(self, limits, monkeypatch) -> None:
        assert limits("[federation]\nallow_no_dp = true").allow_no_dp
        assert not limits("[federation]\nallow_no_dp = false").allow_no_dp
        objection = read_policy("floor").replace(b"[federation]", b"[federation]\nallow_no_dp = false")
        monkeypatch.setattr(
            policy_module, "read_policy", lambda name: objection if name == "floor" else read_policy(name)
        )
        assert not limits("[federation]\nallow_no_dp = true").allow_no_dp

    @pytest.mark.parametrize(
        "value", ["epsilon = 0.0", "epsilon = inf", "epsilon = nan", "delta = 1e-4", "delta = 0.0"]
    )
    def test_a_number_out_of_range_is_refused(self, limits, value: str) -> None:
        with pytest.raises(UsageError, match=r"own\.toml"):
            limits(f"[federation]\n{value}")

    @pytest.mark.parametrize("line", ["allow_no_dp = 1", "budget = 3.0"])
    def test_another_type_or_key_is_refused(self, limits, line: str) -> None:
        with pytest.raises(UsageError, match=r"own\.toml"):
            limits(f"[federation]\n{line}")


RUNS = {
    "letters": "a",
    "hex digits": "0f3a9c",
    "letters and dots": "a.",
    "at signs": "a@a-",
    "digits": "1",
    "numbers": "12 ",
    "phone-like": "+1 650 253 000",
    "IBAN-like": "GB34BUKB20201555555554 ",
    "card-like": "4111 1111 1111 1112 ",
    "prose": "The old bridge of stone stands over the river that runs to the sea. ",
}


@pytest.mark.parametrize("name", RUNS)
def test_time_is_linear_in_the_length(policy: Policy, name: str) -> None:
    text = (RUNS[name] * 2**20)[: 2**20]

    def seconds(length: int) -> float:
        start = time.process_time()
        policy.place(text[:length])
        return time.process_time() - start

    seconds(2**17)
    assert seconds(2**20) < 3  # a third of this on an idle machine; a quadratic pattern takes minutes


@pytest.mark.parametrize("where", [0.0, 0.37, 0.999])
@pytest.mark.parametrize(
    "secret", ["Write to ana.silva@example.org.", "Call +1 650-253-0000 today.", "GB33BUKB20201555555555"]
)
def test_an_identifier_anywhere_in_a_long_text_is_seen(policy: Policy, where: float, secret: str) -> None:
    plain = "The old bridge of stone stands over the river that runs to the sea. " * 2000
    assert policy.place(plain).placement == "shared"
    at = int(where * len(plain))
    assert policy.place(f"{plain[:at]} {secret} {plain[at:]}").placement == "private"


def test_a_private_passage_in_a_long_text_is_seen_by_its_meaning(policy: Policy) -> None:
    plain = "The old bridge of stone stands over the river that runs to the sea. " * 2000
    passage = "The patient is a 54-year-old woman who presents with pain for three days and is discharged home. " * 6
    assert policy.place(plain + passage + plain).topic == "health"
