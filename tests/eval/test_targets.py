"""Losses and greedy answers of targets, against one sequence at a time and against generation."""

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.eval.perplexity import sequence_losses
from fedmem.eval.targets import greedy_matches, join_targets, target_losses
from fedmem.memory.attach import attach
from fedmem.memory.sites import spec_for
from fedmem.training.bank_state import BankState

VOCABULARY = 300
MODEL = new_anchor("nano", VOCABULARY, 0).eval()
MEMORY = attach(MODEL)
STATE = BankState.new(spec_for(MODEL, "ffn", 3, (4, 2)), 1)
for level in STATE.levels:  # new blocks change nothing
    level.copy_(torch.randn(level.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
RNG = np.random.default_rng(0)
CONTEXTS = [[1, *RNG.integers(2, VOCABULARY, RNG.integers(0, 30)).tolist()] for _ in range(23)]
TARGETS = [RNG.integers(2, VOCABULARY, RNG.integers(1, 6)).tolist() for _ in range(23)]
PATHS = np.array([[n % 3, 3 * (n % 3) + n % 2] for n in range(23)])
JOINED = join_targets(CONTEXTS, TARGETS)


def sources(numbers):
    return [STATE.source(PATHS[numbers])]


@torch.no_grad()
def alone(number):
    """Loss of a target, token by token, from one unpadded sequence."""
    context, target = CONTEXTS[number], TARGETS[number]
    with MEMORY.using(*sources([number])):
        logits = MODEL(torch.tensor([[*context, *target]])).logits[0].double()
    return sum(-float(logits[len(context) + at - 1].log_softmax(0)[token]) for at, token in enumerate(target))


@torch.no_grad()
def generated(number, length):
    """Greedy decoding by `generate`, one prompt at a time."""
    with MEMORY.using(*sources([number])):
        out = MODEL.generate(
            torch.tensor([CONTEXTS[number]]), max_new_tokens=length, min_new_tokens=length, do_sample=False,
            attention_mask=torch.ones(1, len(CONTEXTS[number]), dtype=torch.int64), pad_token_id=0,
        )  # fmt: skip
    return out[0, len(CONTEXTS[number]) :].tolist()


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_losses_are_those_of_each_target_alone(batch):
    losses, counts = target_losses(MODEL, JOINED, MEMORY, sources, batch)
    assert counts.tolist() == [len(target) for target in TARGETS]
    np.testing.assert_allclose(losses, [alone(number) for number in range(23)], atol=1e-4)
    bare, _ = target_losses(MODEL, JOINED, batch=batch)
    assert np.abs(bare - losses).max() > 0.01  # memory was in use


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_greedy_matches_are_what_generation_gives(batch):
    spoken = [generated(number, 4) for number in range(23)]
    targets = [[*text[:3], text[3] if number % 2 else (text[3] + 1) % 290 + 2] for number, text in enumerate(spoken)]
    assert not any(1 in text or 0 in text for text in spoken)  # no early end: all of it was decoded
    found = greedy_matches(MODEL, join_targets(CONTEXTS, targets), MEMORY, sources, batch)
    assert found.tolist() == [text == target for text, target in zip(spoken, targets, strict=True)]
    assert found.tolist() == [bool(number % 2) for number in range(23)]


def test_one_wrong_token_anywhere_is_no_match():
    spoken = generated(0, 4)
    for at in range(4):
        target = [token if at != n else token % 290 + 2 for n, token in enumerate(spoken)]
        assert not greedy_matches(MODEL, join_targets(CONTEXTS[:1], [target]), MEMORY, sources).any()


def test_a_context_of_one_token_gives_the_loss_of_the_sequence():
    rows = join_targets([[1]] * 23, TARGETS)
    losses, counts = target_losses(MODEL, rows)
    whole, all_counts = sequence_losses(MODEL, rows.tokens_NT)
    assert np.array_equal(counts, all_counts)
    np.testing.assert_array_equal(losses, whole)


def test_measuring_leaves_no_gradient_and_no_memory_in_use():
    tokens = torch.tensor([CONTEXTS[0]])
    with torch.no_grad():
        before = MODEL(tokens).logits
        target_losses(MODEL, JOINED, MEMORY, sources)
        assert torch.equal(MODEL(tokens).logits, before)
    assert all(parameter.grad is None for parameter in MODEL.parameters())


def test_nothing_to_measure_gives_nothing():
    losses, counts = target_losses(MODEL, join_targets([], []))
    assert len(losses) == len(counts) == len(greedy_matches(MODEL, join_targets([], []))) == 0


@pytest.mark.parametrize(("contexts", "targets"), [([[]], [[3]]), ([[1]], [[]]), ([[1], [1]], [[3]])])
def test_what_cannot_be_joined(contexts, targets):
    with pytest.raises(ValueError, match=r"at least one token|shorter"):
        join_targets(contexts, targets)
