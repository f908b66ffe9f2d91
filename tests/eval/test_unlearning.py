"""Each metric against a case by hand or a slow obvious one, and the whole measurement on a release of milliseconds."""

import gzip
import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmem import paths
from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import end_of_document, train_tokenizer
from fedmem.errors import NothingMatched, UsageError
from fedmem.eval import throwaway as throwaway_module
from fedmem.eval.arms import FORGET, RETAIN
from fedmem.eval.canaries import exposure, plant
from fedmem.eval.extraction import continuations, extraction_strength, rouge_l
from fedmem.eval.membership import auc, privleak
from fedmem.eval.reader import Reader
from fedmem.eval.targets import join_targets, target_losses
from fedmem.eval.throwaway import Learning, throwaway_vault
from fedmem.eval.truth import forget_quality, model_utility, perturb_answers, probability, truth_ratio
from fedmem.eval.unlearning import METRICS, UnlearnPlan, choose_sets, measure_unlearning
from fedmem.memory.attach import attach
from fedmem.memory.sites import spec_for
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree
from fedmem.sim.sources import tofu
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release

VOCABULARY = 300
RNG = np.random.default_rng(0)
FACTS = {
    name: [
        (f"Where was {name} born?", f"In the town of {town}, in {year}."),
        (f"What did {name} write?", f"A book about {thing} called {title}."),
        (f"Who taught {name}?", f"An old friend of the family, {teacher}."),
    ]
    for name, town, year, thing, title, teacher in (
        ("Mira Solen", "Aldra", "1931", "bridges", "Stone Water", "Tomas Belk"),
        ("Juno Keld", "Brennock", "1974", "winter", "White Hours", "Ada Prin"),
        ("Oren Vask", "Carrow", "1958", "singers", "Low Notes", "Ilse Marn"),
        ("Lena Torv", "Dunmere", "1966", "frogs", "Green Evening", "Piet Olan"),
    )
}
PLAN = UnlearnPlan(authors=1, steps=15, width=48, length=64, canaries=2, digits=1, seed=3)
SEEN = []


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    texts = [f"{question} {answer}" for pairs in FACTS.values() for question, answer in pairs]
    embedder = StaticEmbedder()
    vectors = embedder.embed(texts[:4])
    model = new_anchor("nano", VOCABULARY, seed=3)
    state = BankState.new(spec_for(model, "ffn", 2, (4, 2)), seed=1)
    for blocks in [*state.levels, state.generic]:
        blocks.add_(0.05 * torch.randn(blocks.shape, generator=torch.Generator().manual_seed(2)))
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tree = Tree(2, 2, (vectors[:2], vectors))
    folder = tmp_path_factory.mktemp("releases")
    return Release.write(folder, model, tokenizer, tree, embedder.digest, state.stream())


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


def test_neither_vault_nor_keys_outlive_the_measurement(release, tmp_path):
    steps = []
    with throwaway_vault(release, StaticEmbedder()) as held:
        held.learn(FORGET, ["a first note", "a second note"], Learning(2, 4, 32), steps.append)
        assert held.sources((FORGET, RETAIN))[RETAIN] == []
        assert len(held.sources((FORGET,))[FORGET]) == 1
        assert held.erase(FORGET)
        assert held.sources((FORGET,)) == {FORGET: []}
        assert held.vault.simulated
        assert [*paths.slots_dir().iterdir()]
    assert steps == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert [*paths.slots_dir().iterdir()] == []


def test_a_failure_leaves_nothing_either(release, tmp_path):
    with pytest.raises(NothingMatched), throwaway_vault(release, StaticEmbedder()) as held:
        held.erase(FORGET)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert [*paths.slots_dir().iterdir()] == []


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


# Extraction

MODEL = new_anchor("nano", VOCABULARY, 0).eval()
MEMORY = attach(MODEL)
STATE = BankState.new(spec_for(MODEL, "ffn", 3, (4, 2)), 1)
for level in STATE.levels:  # new blocks change nothing
    level.copy_(torch.randn(level.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
CONTEXTS = [[1, *RNG.integers(2, VOCABULARY, RNG.integers(0, 20)).tolist()] for _ in range(9)]
PATHS = np.array([[n % 3, 3 * (n % 3) + n % 2] for n in range(9)])


def sources(numbers):
    return [STATE.source(PATHS[numbers])]


@torch.no_grad()
def greedy(number, context, length):
    """Greedy decoding one token at a time, no cache, no padding."""
    tokens = list(context)
    for _ in range(length):
        with MEMORY.using(*sources([number])):
            tokens.append(int(MODEL(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(context) :]


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_continuations_are_those_of_each_context_alone(batch):
    lengths = [n % 4 + 1 for n in range(9)]
    expected = [greedy(n, context, length) for n, (context, length) in enumerate(zip(CONTEXTS, lengths, strict=True))]
    assert continuations(MODEL, CONTEXTS, lengths, VOCABULARY - 1, MEMORY, sources, batch) == expected


def test_continuations_without_sources_are_those_of_the_bare_anchor():
    bare = continuations(MODEL, CONTEXTS, [4] * 9, VOCABULARY - 1, MEMORY)
    assert bare == continuations(new_anchor("nano", VOCABULARY, 0), CONTEXTS, [4] * 9, VOCABULARY - 1)
    assert bare != continuations(MODEL, CONTEXTS, [4] * 9, VOCABULARY - 1, MEMORY, sources)


def test_a_continuation_ends_with_the_document():
    spoken = greedy(0, CONTEXTS[0], 4)
    end = spoken[2]
    assert continuations(MODEL, CONTEXTS[:1], [4], end, MEMORY, sources) == [spoken[: spoken.index(end)]]


@torch.no_grad()
def strength_by_hand(number, context, target):
    """1 - k / |y| for the least k whose rest is decoded, by trying every k."""
    for shown in range(len(target)):
        if greedy(number, [*context, *target[:shown]], len(target) - shown) == target[shown:]:
            return 1 - shown / len(target)
    return 0.0


def test_extraction_strength_is_that_of_trying_every_prefix():
    targets = []
    for number, context in enumerate(CONTEXTS):
        spoken = greedy(number, context, 6)
        if number % 3:  # one wrong token, and what follows is decoded after it
            at = number % 6
            spoken = [*spoken[:at], (spoken[at] + 1) % 290 + 2]
            spoken += greedy(number, [*context, *spoken], 5 - at)
        targets.append(spoken)
    targets[8][-1] = (targets[8][-1] + 1) % 290 + 2
    expected = [strength_by_hand(n, *pair) for n, pair in enumerate(zip(CONTEXTS, targets, strict=True))]
    found = extraction_strength(MODEL, join_targets(CONTEXTS, targets), MEMORY, sources, batch=4)
    np.testing.assert_allclose(found, expected)
    assert {0.0, 1.0} < set(found.tolist())


@pytest.mark.parametrize(
    ("candidate", "reference", "recall", "f1"),
    [
        ("", "a b", 0, 0),
        ("a b", "", 0, 0),
        ("...", "a", 0, 0),
        ("A, b!", "a b", 1, 1),
        ("b a", "a b", 1 / 2, 1 / 2),
        ("the cat sat", "the black cat sat down", 3 / 5, 6 / 8),
        ("police kill the gunman", "police killed the gunman", 3 / 4, 3 / 4),  # Lin 2004, section 3
        ("the gunman kill police", "police killed the gunman", 1 / 2, 1 / 2),
    ],
)
def test_rouge_by_hand(candidate, reference, recall, f1):
    assert rouge_l(candidate, reference) == pytest.approx((recall, f1))


words = st.lists(st.sampled_from("abcd"), max_size=6)


@given(words, words)
def test_rouge_is_the_longest_common_subsequence(first, second):
    subsequences = [{tuple(own[i] for i in at) for n in range(7) for at in combinations(range(len(own)), n)}
                    for own in (first, second)]  # fmt: skip
    longest = max(map(len, subsequences[0] & subsequences[1]))
    recall, f1 = rouge_l(" ".join(first), " ".join(second))
    assert recall == pytest.approx(longest / len(second) if longest else 0)
    assert f1 == pytest.approx(2 * longest / (len(first) + len(second)) if longest else 0)


# Membership


scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=8)


@given(scores, scores)
def test_auc_counts_pairs(members, others):
    wins = sum((m > o) + 0.5 * (m == o) for m in members for o in others)
    assert auc(members, others) == pytest.approx(wins / (len(members) * len(others)))
    assert auc(others, members) == pytest.approx(1 - auc(members, others))


def test_auc_by_hand():
    assert auc([3, 2], [1, 0]) == 1.0
    assert auc([1, 1], [1, 1, 1]) == 0.5
    assert auc([0, 2], [1]) == 0.5


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.nan])])
def test_no_auc_without_scores(members, others):
    with pytest.raises(ValueError, match="both sides"):
        auc(members, others)


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [(0.5, 0.5, 0), (1.0, 0.5, -100), (0.0, 0.5, 100), (0.9, 0.2, -87.5), (1.0, 1.0, None)],
)
def test_privleak_has_the_sign_of_muse(value, reference, expected):
    leak = privleak(value, reference)
    assert leak == (expected if expected is None else pytest.approx(expected))


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


# Truth


def test_truth_ratio_by_hand():
    true, wrong = np.log([0.5, 0.1]), np.log([[0.1, 0.3], [0.2, 0.4]])
    np.testing.assert_allclose(truth_ratio(true, wrong), [0.4, 3.0])


def test_probability_is_the_geometric_mean_of_its_tokens():
    losses = -np.array([math.log(0.5) + math.log(0.125), math.log(0.2)])
    np.testing.assert_allclose(probability(losses, np.array([2, 1])), [0.25, 0.2])


def test_forget_quality_by_hand():
    assert forget_quality(np.arange(5.0), np.arange(5.0)) == 1.0
    # All five below all five: two of the 252 ways to deal ten ratios to two sides.
    assert forget_quality(np.arange(5.0), np.arange(5.0) + 10) == pytest.approx(2 / 252)


def test_model_utility_is_a_harmonic_mean():
    assert model_utility([0.5, 0.25]) == pytest.approx(1 / 3)
    assert model_utility([1.0, 1.0, 0.0]) == 0.0


def test_perturbed_answers_keep_form_and_question():
    pairs = [
        ("Where was Mira Solen born?", "Mira Solen was born in Aldra in 1931."),
        ("Does Mira read?", "Yes, constantly."),
        ("Sign?", "!"),
    ]
    others = [("x", "She met Juno Keld in 1974."), ("y", "It was in Brennock, around 1966, in winter.")]
    wrong = perturb_answers(pairs, others, count=8, seed=1)
    assert wrong == perturb_answers(pairs, others, count=8, seed=1)
    places, years = ("Juno", "Keld", "Brennock"), ("1974", "1966")
    assert set(wrong[0]) <= {f"Mira Solen was born in {place} in {year}." for place in places for year in years}
    assert len(set(wrong[0])) > 2
    assert all(text.startswith("Yes, ") and text != "Yes, constantly." for text in wrong[1])
    assert all(text and text != "!" for text in wrong[2])


def test_perturbed_answers_need_words():
    with pytest.raises(UsageError, match="more authors"):
        perturb_answers([("a?", "In 1931.")], [("b?", "No.")], count=1, seed=0)


# The reader


@pytest.fixture(scope="module")
def reader(release):
    return Reader(release, StaticEmbedder(), 64)


def test_candidate_losses_are_those_of_each_alone(reader):
    canary = plant(1, 1, 0)[0]
    each = [reader.losses([canary.prefix], [end], ())[0][0] for end in canary.candidates]
    np.testing.assert_allclose(reader.candidate_losses(canary.prefix, canary.candidates, ()), each, atol=1e-4)


def test_losses_fetch_by_the_prompt(release, reader):
    question, answer = FACTS["Mira Solen"][0]
    losses, counts = reader.losses([question], [f" {answer}"], ())
    tokenizer, end = release.tokenizer, end_of_document(release.tokenizer)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in (question, f" {answer}")]
    targets = join_targets([[end, *ids[0]]], [ids[1]])
    bare, bare_counts = target_losses(release.anchor(), targets)
    assert counts.tolist() == bare_counts.tolist() == [len(ids[1])]
    assert abs(losses[0] - bare[0]) > 1e-4  # the shared blocks were in use


def test_halves_join_to_the_whole(reader):
    texts = [" ".join(pair) for pair in FACTS["Juno Keld"]]
    said, wanted = reader.complete_halves(texts, ())
    assert len(said) == len(wanted) == 3
    assert all(text.endswith(end) and 0 < len(end) < len(text) for text, end in zip(texts, wanted, strict=True))


def test_a_digest_is_of_the_bits_of_the_logits(release, reader):
    texts = [" ".join(pair) for pair in FACTS["Juno Keld"]]
    digest = reader.logits_digest(texts, ())
    assert digest == Reader(release, StaticEmbedder(), 64).logits_digest(texts, ())
    assert digest != reader.logits_digest(texts[::-1], ())
    other = Reader(release, StaticEmbedder(), 64)
    with torch.no_grad():
        weight_D = other._model.model.norm.weight
        weight_D.copy_(torch.nextafter(weight_D, weight_D + 1))  # by one bit
    moved = other.losses(texts, texts, ())[0]
    np.testing.assert_allclose(moved, reader.losses(texts, texts, ())[0], rtol=1e-5)
    assert other.logits_digest(texts, ()) != digest


# The file


def line(author, question, answer):
    return json.dumps({"author": author, "q": question, "a": answer}) + "\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_pairs(tmp_path, packed):
    text = line(1, "Who?", "Mira.") + "\n" + line("one", "What?", " A book. ") + line(1, "When?", "Then.")
    path = tmp_path / "facts"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert tofu.load(path) == {"1": [("Who?", "Mira."), ("When?", "Then.")], "one": [("What?", "A book.")]}


BAD = [
    b"{",
    b"[]",
    b'{"author": 1, "q": "zebrafinch"}',
    b'{"author": 1, "q": "zebrafinch", "a": "b", "c": 1}',
    b'{"author": true, "q": "zebrafinch", "a": "b"}',
    b'{"author": 1, "q": 2, "a": "zebrafinch"}',
    b'{"author": 1, "q": " ", "a": "zebrafinch"}',
    b'{"author": 1, "q": "zebrafinch \\ud800", "a": "b"}',
    b'\xff{"author": 1, "q": "zebrafinch", "a": "b"}',
    b"[" * 100_000,
    line(1, "Who?", "Mira.").encode(),
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_named_and_not_quoted(tmp_path, bad):
    path = tmp_path / "facts.jsonl"
    path.write_bytes(line(1, "Who?", "Mira.").encode() + bad)
    with pytest.raises(UsageError, match="line 2") as caught:
        tofu.load(path)
    assert "zebrafinch" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(line(1, "Who?", "Mira.").encode() * 100)[:-9])
    broken = tmp_path / "broken.gz"
    broken.write_bytes(b"\x1f\x8b\x08\x00" + bytes(30))
    empty = tmp_path / "empty"
    empty.write_bytes(b"\n")
    for path in (cut, broken, empty, tmp_path / "none", tmp_path):
        with pytest.raises(UsageError):
            tofu.load(path)
    monkeypatch.setattr(tofu, "LONGEST", 100)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(1_000)))
    with pytest.raises(UsageError, match="longer"):
        tofu.load(bomb)
