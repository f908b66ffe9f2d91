"""Extraction strength, greedy continuations and ROUGE-L agree with their definitions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmem.anchor.presets import new_anchor
from fedmem.eval.extraction import extraction_strength, generate_continuations, rouge_l
from fedmem.eval.targets import join_targets
from fedmem.memory.attach import attach
from fedmem.memory.sites import spec_for
from fedmem.training.bank_state import BankState
from tests.eval.invented import VOCABULARY

RNG = np.random.default_rng(0)


def moved(state):
    """The bank with blocks that change an output; new ones change nothing."""
    for level in state.levels:
        level.copy_(torch.randn(level.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    return state


MODEL = new_anchor("nano", VOCABULARY, 0).eval()
MEMORY = attach(MODEL)
STATE = moved(BankState.new(spec_for(MODEL, "ffn", 3, (4, 2)), 1))
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
    assert generate_continuations(MODEL, CONTEXTS, lengths, VOCABULARY - 1, MEMORY, sources, batch) == expected


def test_continuations_without_sources_are_those_of_the_bare_anchor():
    bare = generate_continuations(MODEL, CONTEXTS, [4] * 9, VOCABULARY - 1, MEMORY)
    assert bare == generate_continuations(new_anchor("nano", VOCABULARY, 0), CONTEXTS, [4] * 9, VOCABULARY - 1)
    assert bare != generate_continuations(MODEL, CONTEXTS, [4] * 9, VOCABULARY - 1, MEMORY, sources)


def test_a_continuation_ends_with_the_document():
    spoken = greedy(0, CONTEXTS[0], 4)
    end = spoken[2]
    assert generate_continuations(MODEL, CONTEXTS[:1], [4], end, MEMORY, sources) == [spoken[: spoken.index(end)]]


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
