"""Make probes of long-tail facts: write each fact an exact number of times, or count facts in an existing text.

Invariants
- `write_facts` is a function of (facts, frequencies, seed). A document states one fact once, and every statement names
  the subject before the answer.
- `count_together` counts each written fact in exactly as many documents as the frequency of its bucket.
- A prompt is a statement's text up to the answer, so prompt and answer have the same tokens as in the text.

    absent = [fact for fact, count in zip(facts, count_together(facts, corpus)) if not count]  # else it counts twice
    written = write_facts(absent, (1, 2, 4, 8, 16), seed=0)
    train(corpus + written.documents)

>>> written = write_facts([Fact("iron", "symbol", "Fe")], (3, 4, 5, 6, 7), seed=0)
>>> len(written.documents), written.probes[0].prompt
(3, 'The chemical symbol of iron is')
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmem.errors import UsageError

BUCKETS = 5
COUNTED = (0, 1, 2, 4, 10)
"""The least frequency of each bucket of counted facts; the last bucket has no upper limit."""

TEMPLATES = {
    "atomic number": (
        "The atomic number of {subject} is {answer}.",
        "The periodic table gives {subject} the number {answer}.",
        "An atom of {subject} has a nucleus with a charge of {answer}.",
        "If the element is {subject}, then its place in the table is {answer}.",
    ),
    "symbol": (
        "The chemical symbol of {subject} is {answer}.",
        "Every formula writes {subject} as {answer}.",
        "Chemists shorten the name of {subject} to {answer}.",
        "The periodic table shows {subject} under the letters {answer}.",
    ),
    "country": (
        "The city of {subject} lies in {answer}.",
        "On a map you find {subject} within the borders of {answer}.",
        "Whoever wants to see {subject} has to travel to {answer}.",
        "The people of {subject} live in a city of {answer}.",
    ),
}
"""The statements of each relation. Each ends with the answer and a full stop, and the first one gives the prompt.

No statement contains a chemical symbol as a word: one that began with `In` would state indium's symbol twice.
"""


@dataclass(frozen=True)
class Fact:
    """A fact as a triple.

    Attributes:
        subject: the name of an element or a city, for example.
        relation: a key of TEMPLATES.
        answer: the only answer of this subject in this relation.
    """

    subject: str
    relation: str
    answer: str


@dataclass(frozen=True)
class Probe:
    """A question and its answer.

    Attributes:
        prompt: the text of the fact's first statement up to the answer, without a space at its end.
        answer: the answer.
        relation: a key of TEMPLATES.
        frequency: number of training documents that state the fact.
    """

    prompt: str
    answer: str
    relation: str
    frequency: int


@dataclass(frozen=True)
class Written:
    """Training documents that state facts, and questions about these facts.

    Attributes:
        documents: the documents, shuffled.
        probes: a probe for each fact, in the order of the facts.
    """

    documents: list[str]
    probes: list[Probe]


def write_facts(facts: Sequence[Fact], frequency_by_bucket: Sequence[int], seed: int) -> Written:
    """Write documents that state each fact as often as the frequency of its bucket.

    The facts of each relation are divided evenly and at random among five buckets.

    Args:
        facts: the facts, with one answer for each subject in a relation.
        frequency_by_bucket: five rising frequencies, from 0.
        seed: decides buckets, statements and order.

    Raises:
        UsageError: the frequencies are not five rising numbers, a relation has no templates, or a subject has two
            answers in one relation.
    """
    frequencies = list(frequency_by_bucket)
    if len(frequencies) != BUCKETS or frequencies != sorted({*frequencies}) or frequencies[0] < 0:
        raise UsageError("Give five frequencies, each greater than the one before it, from 0.")
    if len({(fact.subject, fact.relation) for fact in facts}) < len(facts):
        raise UsageError("A subject has two answers in one relation; leave one of them out.")
    rng = np.random.default_rng(seed)
    frequency_F = np.array(frequencies)[_random_buckets(facts, rng)]
    documents = list[str]()
    for fact, frequency in zip(facts, frequency_F, strict=True):
        templates = _templates(fact.relation)
        first = int(rng.integers(len(templates)))  # then in turn, so that sentences are used evenly
        documents += [_state(fact, templates[(first + turn) % len(templates)]) for turn in range(frequency)]
    return Written([documents[i] for i in rng.permutation(len(documents))], make_probes(facts, frequency_F))


def make_probes(facts: Sequence[Fact], frequency_F: np.ndarray) -> list[Probe]:
    """Return a probe for each fact.

    Args:
        facts: the facts.
        frequency_F: the frequency of each fact.

    Raises:
        UsageError: a relation has no templates.
    """
    return [
        Probe(_prompt(fact), fact.answer, fact.relation, int(frequency))
        for fact, frequency in zip(facts, frequency_F, strict=True)
    ]


def count_together(facts: Sequence[Fact], texts: Sequence[str]) -> np.ndarray:
    """Count for each fact the texts that contain both subject and answer as whole words.

    Case is ignored for the subject but not for the answer: `He` is helium's symbol, and `he` is not.

    Args:
        facts: the facts, F of them.
        texts: the texts to count in.

    Returns:
        `[F]` int64.
    """
    texts_with = defaultdict[str, set[int]](set)
    for number, text in enumerate(texts):
        for word in set(_words(text)):
            texts_with[word].add(number)
    return np.array([_count(fact, texts, texts_with) for fact in facts], dtype=np.int64)


def _count(fact: Fact, texts: Sequence[str], texts_with: dict[str, set[int]]) -> int:
    words = [*_words(fact.subject), *_words(fact.answer)]
    if not words:
        return 0
    subject, answer = (rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in (fact.subject, fact.answer))
    candidates = set.intersection(*(texts_with.get(word, set()) for word in words))
    return sum(bool(re.search(subject, texts[i], re.IGNORECASE) and re.search(answer, texts[i])) for i in candidates)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _random_buckets(facts: Sequence[Fact], rng: np.random.Generator) -> np.ndarray:
    """Return the bucket of each fact: the facts of a relation are divided evenly and at random."""
    relations, bucket_F = np.array([fact.relation for fact in facts]), np.zeros(len(facts), dtype=np.int64)
    for relation in np.unique(relations):
        members = np.flatnonzero(relations == relation)
        bucket_F[members] = rng.permutation(np.arange(len(members)) % BUCKETS)
    return bucket_F


def _templates(relation: str) -> tuple[str, ...]:
    if relation not in TEMPLATES:
        raise UsageError(f"There is no sentence for the relation {relation!r}; choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[relation]


def _state(fact: Fact, template: str) -> str:
    return template.format(subject=fact.subject, answer=fact.answer)


def _prompt(fact: Fact) -> str:
    return _templates(fact.relation)[0].partition(" {answer}")[0].format(subject=fact.subject)
