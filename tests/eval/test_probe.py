"""Answers to facts: a model that looks them up, one that is wrong, and batches against one probe at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import end_of_document, train_tokenizer
from fedmem.eval.facts import Fact, Probe, write_facts
from fedmem.eval.probe import CANDIDATES, Answers, _candidates, ask_probes, group_by_bucket
from fedmem.memory.attach import attach
from fedmem.memory.sites import spec_for
from fedmem.training.bank_state import BankState

NAMES = [f"{first}{last}" for first in ("mer", "sol", "tar", "vin") for last in ("onium", "eria", "ax", "ite", "oy")]
FACTS = [Fact(name, "atomic number", str(n + 1)) for n, name in enumerate(NAMES)]
FREQUENCIES = (1, 2, 4, 8, 16)
WRITTEN = write_facts(FACTS, FREQUENCIES, seed=1)
TOKENIZER = train_tokenizer(WRITTEN.documents, 280)  # a small one: numbers and names are of several tokens
EOS = end_of_document(TOKENIZER)
PROBES = WRITTEN.probes


class Lookup:
    """A model that knows texts by heart: likeliest is what comes next in the one that begins as the sequence does."""

    def __init__(self, texts):
        self.known = [[EOS, *TOKENIZER.encode(text).ids] for text in texts]

    def eval(self):
        return self

    def __call__(self, tokens_BT):
        logits_BTV = torch.zeros(*tokens_BT.shape, TOKENIZER.get_vocab_size())
        for b, row in enumerate(tokens_BT.tolist()):
            for t in range(len(row)):
                for known in self.known:
                    if known[: t + 1] == row[: t + 1] and len(known) > t + 1:
                        logits_BTV[b, t, known[t + 1]] = 9
        return SimpleNamespace(logits=logits_BTV)


def test_who_looks_facts_up_gets_all_of_them_and_who_is_wrong_none():
    right = Lookup([f"{probe.prompt} {probe.answer}." for probe in PROBES])
    wrong = Lookup([f"{probe.prompt} {int(probe.answer) % 20 + 1}." for probe in PROBES])
    for model, share in ((right, 1.0), (wrong, 0.0)):
        rows = group_by_bucket(PROBES, ask_probes(model, TOKENIZER, PROBES, 0), FREQUENCIES)
        assert [(row["exact"], row["ranked"]) for row in rows] == [(share, share)] * 5
        assert [(row["bucket"], row["least"], row["most"], row["facts"]) for row in rows] == [
            (number, frequency, frequency, 4) for number, frequency in enumerate(FREQUENCIES)
        ]
        assert all(row["chance"] == 1 / 20 for row in rows)


def test_who_knows_the_common_ones_gets_those():
    said = [int(probe.answer) if probe.frequency >= 4 else int(probe.answer) % 20 + 1 for probe in PROBES]
    common = Lookup([f"{probe.prompt} {answer}." for probe, answer in zip(PROBES, said, strict=True)])
    rows = group_by_bucket(PROBES, ask_probes(common, TOKENIZER, PROBES, 0), FREQUENCIES)
    assert [row["exact"] for row in rows] == [row["ranked"] for row in rows] == [0, 0, 1, 1, 1]


def test_a_number_does_not_beat_those_that_it_begins():
    twelve = next(probe for probe in PROBES if probe.answer == "12")
    assert len(TOKENIZER.encode(" 12").ids) > len(TOKENIZER.encode(" 1").ids)
    found = ask_probes(Lookup([f"{twelve.prompt} 12."]), TOKENIZER, [twelve, *PROBES], 0)
    assert found.ahead_F[0] == 0


def test_a_tie_is_lost():
    found = ask_probes(Lookup([]), TOKENIZER, [Probe("a", "b", "r", 1), Probe("a", "c", "r", 1)], 0)
    assert found.ahead_F.tolist() == [1, 1]
    assert found.exact_F.tolist() == [False, False]


def anchor_with_memory():
    """An anchor with a bank that says something else for each probe."""
    model = new_anchor("nano", 280, 0)
    state = BankState.new(spec_for(model, "ffn", 4, (4, 2)), 1)
    for level in state.levels:
        level.copy_(torch.randn(level.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    paths = np.array([[n % 4, 4 * (n % 4) + n // 4 % 4] for n in range(len(PROBES))])
    return model, attach(model), lambda numbers: [state.source(paths[numbers])]


def test_batches_give_what_one_probe_at_a_time_gives():
    model, memory, sources = anchor_with_memory()
    slow = ask_probes(model, TOKENIZER, PROBES, 0, memory, sources, batch=1)
    for batch in (7, 32, 500):
        fast = ask_probes(model, TOKENIZER, PROBES, 0, memory, sources, batch)
        assert fast.ahead_F.tolist() == slow.ahead_F.tolist()
        assert fast.exact_F.tolist() == slow.exact_F.tolist()
    assert ask_probes(model, TOKENIZER, PROBES, 0).ahead_F.tolist() != slow.ahead_F.tolist()


@torch.no_grad()
def test_ranks_are_those_of_whole_likelihoods_with_the_probes_own_memory():
    model, memory, sources = anchor_with_memory()
    found = ask_probes(model, TOKENIZER, PROBES, 0, memory, sources)

    def likelihood(number, answer):
        prompt, end = (TOKENIZER.encode(text).ids for text in (PROBES[number].prompt, f" {answer}."))
        ids = [EOS, *prompt, *end]
        with memory.using(*sources(np.array([number]))):
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(scores[at - 1, ids[at]]) for at in range(len(ids) - len(end), len(ids)))

    for number, probe in enumerate(PROBES):
        every = {other.answer: likelihood(number, other.answer) for other in PROBES}
        assert found.ahead_F[number] == sum(value > every[probe.answer] for value in every.values())
    assert found.others_F.tolist() == [19] * 20


def test_candidates_are_answers_of_the_same_relation():
    probes = [Probe("p", str(n % 50), "big", 1) for n in range(90)] + [
        Probe("p", f"x{n}", "small", 1) for n in range(3)
    ]
    drawn = _candidates(probes, seed=3)
    assert drawn == _candidates(probes, seed=3) != _candidates(probes, seed=4)
    for probe, own in zip(probes, drawn, strict=True):
        answers_of = {other.answer for other in probes if other.relation == probe.relation}
        assert own[0] == probe.answer
        assert len(set(own)) == len(own) == min(CANDIDATES, len(answers_of))
        assert set(own) <= answers_of


def test_a_row_counts_the_facts_of_its_bucket():
    frequencies = [0, 0, 1, 2, 3, 4, 9, 10, 250]
    probes = [Probe("p", "a", "r", frequency) for frequency in frequencies]
    found = Answers(np.arange(9) % 2 == 0, np.full(9, 3), np.arange(9) // 4)
    rows = group_by_bucket(probes, found, (0, 1, 2, 4, 10))
    assert [(row["bucket"], row["least"], row["most"], row["facts"]) for row in rows] == [
        (0, 0, 0, 2), (1, 1, 1, 1), (2, 2, 3, 2), (3, 4, 9, 2), (4, 10, 250, 2),
    ]  # fmt: skip
    assert [row["exact"] for row in rows] == [0.5, 1, 0.5, 0.5, 0.5]
    assert [row["ranked"] for row in rows] == [1, 1, 0.5, 0, 0]
    assert (
        group_by_bucket(probes[:2], Answers(*(column[:2] for column in vars(found).values())), (0, 5))[0]["facts"] == 2
    )


def test_a_fact_rarer_than_every_bucket_is_not_dropped():
    with pytest.raises(ValueError, match="first bucket"):
        group_by_bucket([Probe("p", "a", "r", 0)], Answers(*(np.zeros(1),) * 3), (1, 2))
