"""Long-tail facts: text that states each fact an exact number of times, or facts counted in a text that is there.

Invariants
- `write_facts` is a function of (facts, frequencies, seed); a document states one fact once, and every statement of a
  fact names its subject before its answer.
- What is written is what is counted: `count_together` finds each written fact in as many documents as its bucket says.
- A prompt is a statement's text up to the answer, so prompt and answer cut into the tokens that they have in the text.

    kept = [fact for fact, count in zip(facts, count_together(facts, corpus)) if not count]  # else it counts twice
    written = write_facts(kept, (1, 2, 4, 8, 16), seed=0)
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
"""Where the buckets of counted facts start; the last one is open."""

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
"""Statements of a relation: the answer ends each of them, before a full stop. The first one gives the prompt.

None holds a symbol as a word of its own: one that began with `In` would state indium's twice.
"""


@dataclass(frozen=True)
class Fact:
    """A triple: subject, relation (a key of TEMPLATES), answer."""

    subject: str
    relation: str
    answer: str


@dataclass(frozen=True)
class Probe:
    """A question and its answer; `frequency` is the number of training documents that state it."""

    prompt: str
    answer: str
    relation: str
    frequency: int


@dataclass(frozen=True)
class Written:
    """Training documents, shuffled, and a probe for each fact, in the order of the facts."""

    documents: list[str]
    probes: list[Probe]


def write_facts(facts: Sequence[Fact], frequency_by_bucket: Sequence[int], seed: int) -> Written:
    """State each fact as often as its bucket says; the facts of a relation are dealt evenly to five buckets at random.

    Raises UsageError on anything but five rising frequencies, on a relation without templates, and on a subject that
    has two answers in one relation.
    """
    frequencies = list(frequency_by_bucket)
    if len(frequencies) != BUCKETS or frequencies != sorted({*frequencies}) or frequencies[0] < 0:
        raise UsageError("Give five frequencies, each greater than the one before it, from 0.")
    if len({(fact.subject, fact.relation) for fact in facts}) < len(facts):
        raise UsageError("A subject has two answers in one relation; leave one of them out.")
    rng = np.random.default_rng(seed)
    frequency_F = np.array(frequencies)[_dealt(facts, rng)]
    documents = list[str]()
    for fact, frequency in zip(facts, frequency_F, strict=True):
        templates = _templates(fact.relation)
        first = int(rng.integers(len(templates)))  # then in turn, so that sentences are used evenly
        documents += [_state(fact, templates[(first + turn) % len(templates)]) for turn in range(frequency)]
    return Written([documents[i] for i in rng.permutation(len(documents))], probes(facts, frequency_F))


def probes(facts: Sequence[Fact], frequency_F: np.ndarray) -> list[Probe]:
    """A probe for each fact. Raises UsageError on a relation without templates."""
    return [
        Probe(_prompt(fact), fact.answer, fact.relation, int(frequency))
        for fact, frequency in zip(facts, frequency_F, strict=True)
    ]


def count_together(facts: Sequence[Fact], texts: Sequence[str]) -> np.ndarray:
    """In how many texts subject and answer of each fact both stand as whole words, `[F]` int64.

    The subject in any case, the answer in its own: `He` is helium's symbol, and `he` is not.
    """
    holding = defaultdict[str, set[int]](set)
    for number, text in enumerate(texts):
        for word in set(_words(text)):
            holding[word].add(number)
    return np.array([_count(fact, texts, holding) for fact in facts], dtype=np.int64)


def _count(fact: Fact, texts: Sequence[str], holding: dict[str, set[int]]) -> int:
    words = [*_words(fact.subject), *_words(fact.answer)]
    if not words:
        return 0
    subject, answer = (rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in (fact.subject, fact.answer))
    both = set.intersection(*(holding.get(word, set()) for word in words))
    return sum(bool(re.search(subject, texts[i], re.IGNORECASE) and re.search(answer, texts[i])) for i in both)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _dealt(facts: Sequence[Fact], rng: np.random.Generator) -> np.ndarray:
    """Bucket of each fact: those of a relation in a random order, one after the other to each bucket."""
    relations, bucket_F = np.array([fact.relation for fact in facts]), np.zeros(len(facts), dtype=np.int64)
    for relation in np.unique(relations):
        own = np.flatnonzero(relations == relation)
        bucket_F[own] = rng.permutation(np.arange(len(own)) % BUCKETS)
    return bucket_F


def _templates(relation: str) -> tuple[str, ...]:
    if relation not in TEMPLATES:
        raise UsageError(f"There is no sentence for the relation {relation!r}; choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[relation]


def _state(fact: Fact, template: str) -> str:
    return template.format(subject=fact.subject, answer=fact.answer)


def _prompt(fact: Fact) -> str:
    return _templates(fact.relation)[0].partition(" {answer}")[0].format(subject=fact.subject)
