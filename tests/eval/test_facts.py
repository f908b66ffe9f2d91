"""Facts written an exact number of times, facts counted in a text, and where facts come from."""

import re

import numpy as np
import pytest

from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.errors import UsageError
from fedmem.eval.facts import TEMPLATES, Fact, count_together, make_probes, write_facts

NAMES = [f"{first}{last}" for first in ("mer", "sol", "tar", "vin", "kel") for last in ("onium", "eria", "ax", "ite")]
FACTS = [
    *(Fact(name, "atomic number", str(n * 7 + 1)) for n, name in enumerate(NAMES)),
    *(Fact(name, "symbol", name[0].upper() + name[n % 3 + 2]) for n, name in enumerate(NAMES)),
    *(Fact(name.title(), "country", f"{name.title()}land") for name in NAMES[:7]),
    Fact("indium", "symbol", "In"),
    Fact("helium", "symbol", "He"),
    Fact("iodine", "symbol", "I"),
]
FREQUENCIES = (0, 1, 3, 8, 20)
WRITTEN = write_facts(FACTS, FREQUENCIES, seed=4)


def stated(fact):
    """Documents that state a fact, by their whole text."""
    texts = {template.format(subject=fact.subject, answer=fact.answer) for template in TEMPLATES[fact.relation]}
    return [document for document in WRITTEN.documents if document in texts]


def test_each_fact_is_stated_exactly_as_often_as_its_bucket_says():
    assert [len(stated(fact)) for fact in FACTS] == [probe.frequency for probe in WRITTEN.probes]
    assert len(WRITTEN.documents) == sum(probe.frequency for probe in WRITTEN.probes)
    assert {probe.frequency for probe in WRITTEN.probes} == set(FREQUENCIES)


def test_what_is_written_is_what_is_counted():
    assert count_together(FACTS, WRITTEN.documents).tolist() == [probe.frequency for probe in WRITTEN.probes]


def test_each_relation_has_its_share_of_every_bucket():
    for relation in TEMPLATES:
        own = [probe.frequency for probe in WRITTEN.probes if probe.relation == relation]
        shares = [own.count(frequency) for frequency in FREQUENCIES]
        assert max(shares) - min(shares) <= 1


def test_sentences_are_used_evenly():
    for fact, probe in zip(FACTS, WRITTEN.probes, strict=True):
        documents = stated(fact)
        times = [documents.count(document) for document in set(documents)]
        assert len(times) == min(probe.frequency, len(TEMPLATES[fact.relation]))
        assert max(times, default=0) - min(times, default=0) <= 1


def test_facts_are_written_by_their_seed():
    assert write_facts(FACTS, FREQUENCIES, seed=4) == WRITTEN
    other = write_facts(FACTS, FREQUENCIES, seed=5)
    assert other.probes != WRITTEN.probes
    assert [stated(fact) for fact in FACTS] != sorted(WRITTEN.documents)


@pytest.mark.parametrize("relation", TEMPLATES)
def test_a_sentence_names_the_subject_and_ends_with_the_answer(relation):
    for template in TEMPLATES[relation]:
        assert template.endswith(" {answer}.")
        assert template.count("{subject}") == template.count("{answer}") == 1


def test_prompt_and_answer_have_the_tokens_that_they_have_in_the_text():
    tokenizer = train_tokenizer(WRITTEN.documents, 400)
    for fact, probe in zip(FACTS, WRITTEN.probes, strict=True):
        whole = f"{probe.prompt} {probe.answer}."
        assert whole == TEMPLATES[fact.relation][0].format(subject=fact.subject, answer=fact.answer)
        parts = (probe.prompt, f" {probe.answer}", ".")
        assert tokenizer.encode(whole).ids == [i for part in parts for i in tokenizer.encode(part).ids]


@pytest.mark.parametrize(
    "frequencies", [(1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (1, 2, 2, 4, 5), (2, 1, 3, 4, 5), (-1, 0, 1, 2, 3)]
)
def test_frequencies_that_make_no_five_buckets(frequencies):
    with pytest.raises(UsageError):
        write_facts(FACTS, frequencies, seed=0)


def test_facts_that_cannot_be_written():
    with pytest.raises(UsageError, match="two answers"):
        write_facts([Fact("iron", "symbol", "Fe"), Fact("iron", "symbol", "Ir")], FREQUENCIES, seed=0)
    with pytest.raises(UsageError, match="atomic number, symbol, country"):
        write_facts([Fact("iron", "colour", "grey")], FREQUENCIES, seed=0)


def test_counting_is_what_a_search_of_every_text_gives():
    rng = np.random.default_rng(0)
    words = ["Iron", "iron", "Fe", "fe", "New", "York", "york", "York's", "US", "us", "26", "126", "St.", "Irons", "-"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(400)]
    facts = [Fact(s, "any", a) for s in ("iron", "New York", "St.", "US") for a in ("Fe", "us", "26", "York", "St.")]

    def holds(phrase, text, **flags):
        return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, **flags) is not None

    wanted = [sum(holds(f.subject, t, flags=re.I) and holds(f.answer, t) for t in texts) for f in facts]
    assert count_together(facts, texts).tolist() == wanted
    assert min(wanted) < max(wanted)


@pytest.mark.parametrize(
    ("text", "count"),
    [("Helium is written He.", 1), ("He said: helium!", 1), ("helium, he said", 0), ("heliums are He", 0),
     ("He He helium helium", 1), ("", 0)],
)  # fmt: skip
def test_subject_in_any_case_and_answer_in_its_own(text, count):
    assert count_together([Fact("helium", "symbol", "He")], [text]).tolist() == [count]


def test_nothing_to_count():
    assert count_together([], ["a text"]).tolist() == []
    assert count_together([Fact("!!!", "any", "?")], ["!!! ?"]).tolist() == [0]


def test_probes_of_counted_facts_carry_their_count():
    (probe,) = make_probes([Fact("iron", "symbol", "Fe")], np.array([3]))
    assert (probe.prompt, probe.answer, probe.frequency) == ("The chemical symbol of iron is", "Fe", 3)
