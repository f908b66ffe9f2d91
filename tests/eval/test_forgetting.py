"""What is kept after a removal: the share from its definition, and the measurement against sequences one at a time."""

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.errors import UsageError
from fedmem.eval.forgetting import losses_by_side, measure_removal, retained_facts, retained_losses, retained_share
from fedmem.eval.perplexity import sequence_losses
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source
from fedmem.memory.sites import spec_for
from fedmem.training.bank_state import BankState

MODEL, NEVER = new_anchor("nano", 300, 0), new_anchor("nano", 300, 1)
MEMORY = attach(MODEL)
STATE = BankState.new(spec_for(MODEL, "ffn", 3, (4, 2)), 1)
for number, level in enumerate([*STATE.levels, STATE.generic]):
    level.copy_(torch.randn(level.shape, generator=torch.Generator().manual_seed(number)) * 0.2)
TOKENS = torch.randint(2, 300, (21, 24), generator=torch.Generator().manual_seed(5))
for row in range(21):
    TOKENS[row, 8 + row % 13 :] = 0
PATHS = np.array([[n % 3, 3 * (n % 3) + n // 3 % 3] for n in range(21)])
INSIDE = PATHS[:, 0] == 1


def fetched(numbers):
    return [STATE.source(PATHS[numbers])]


def generic(numbers):
    return [make_shared_source(STATE.spec, STATE.generic)]


def nothing(numbers):
    return []


def arms(never, whole, removed):
    ones = np.ones(len(never), dtype=np.int64)
    return {"never": (np.array(never), ones), "whole": (np.array(whole), ones), "removed": (np.array(removed), ones)}


@pytest.mark.parametrize(
    ("never", "whole", "removed", "share"),
    [(0.2, 0.6, 0.6, 1), (0.2, 0.6, 0.2, 0), (0.2, 0.6, 0.4, 0.5), (0.2, 0.6, 0.1, -0.25), (0.6, 0.6, 0.6, None),
     (0.6, 0.2, 0.4, None)],
)  # fmt: skip
def test_the_share_that_outlives_removal(never, whole, removed, share):
    assert retained_share(never, whole, removed) == (share if share is None else pytest.approx(share))


def test_of_losses_less_is_better():
    found = retained_losses(arms([5.0, 3, 9], [1.0, 1, 5], [4.0, 2, 5]), np.array([True, True, False]))
    assert found["inside"] == {"never": 4, "whole": 1, "removed": 3, "retained": pytest.approx(1 / 3)}
    assert found["outside"] == {"never": 9, "whole": 5, "removed": 5, "retained": 1}


def test_memory_that_taught_nothing_leaves_nothing_to_retain():
    found = retained_losses(arms([1.0, 3], [2.0, 3], [1.5, 3]), np.array([True, False]))
    assert found["inside"]["retained"] is found["outside"]["retained"] is None


def test_of_facts_more_is_better():
    exact = {
        "never": np.array([1, 0, 0, 0, 0], dtype=bool),
        "whole": np.array([1, 1, 1, 0, 1], dtype=bool),
        "removed": np.array([0, 1, 1, 0, 1], dtype=bool),
    }
    found = retained_facts(exact, np.array([True, True, True, True, False]))
    assert found["inside"] == {"never": 0.25, "whole": 0.75, "removed": 0.5, "retained": 0.5}
    assert found["outside"]["retained"] == 1


@pytest.mark.parametrize("inside", [[True, True], [False, False]])
def test_both_sides_must_have_texts(inside):
    with pytest.raises(UsageError, match="one side has none"):
        retained_losses(arms([1.0, 1], [1.0, 1], [1.0, 1]), np.array(inside))


@pytest.mark.parametrize("instead", [generic, nothing])
def test_each_side_is_measured_with_its_own_sources(instead):
    losses, counts = losses_by_side(MODEL, MEMORY, TOKENS, INSIDE, instead, fetched)
    for n in range(21):
        own = instead if INSIDE[n] else fetched
        loss, count = sequence_losses(MODEL, TOKENS[n : n + 1], MEMORY, lambda _, n=n, own=own: own(np.array([n])))
        assert counts[n] == count[0]
        assert losses[n] == pytest.approx(loss[0], rel=1e-6)


def test_removal_leaves_the_rest_alone_to_the_last_bit():
    found = measure_removal(NEVER, MODEL, MEMORY, TOKENS, INSIDE, fetched, generic, fetched)
    assert found["outside"]["whole"] == found["outside"]["removed"]
    assert found["inside"]["whole"] != found["inside"]["removed"]
    bare = measure_removal(NEVER, MODEL, MEMORY, TOKENS, INSIDE, fetched, nothing, generic)
    assert bare["inside"]["removed"] not in (found["inside"]["removed"], found["inside"]["whole"])
    assert bare["outside"]["removed"] != bare["outside"]["whole"]  # harm to others would show


def test_the_arms_are_those_of_the_two_models():
    found = measure_removal(NEVER, MODEL, MEMORY, TOKENS, INSIDE, fetched, nothing, fetched)
    wanted = {
        "never": sequence_losses(NEVER, TOKENS),
        "whole": sequence_losses(MODEL, TOKENS, MEMORY, fetched),
        "removed": sequence_losses(MODEL, TOKENS),
    }
    for name, (losses, counts) in wanted.items():
        assert found["inside"][name] == pytest.approx(losses[INSIDE].sum() / counts[INSIDE].sum(), rel=1e-6)


def test_what_went_into_the_block_alone_is_not_retained():
    """An anchor whose memory changes its losses, and that is without it the one that never saw the text."""
    found = measure_removal(MODEL, MODEL, MEMORY, TOKENS, INSIDE, fetched, nothing, fetched)
    assert found["inside"]["never"] == pytest.approx(found["inside"]["removed"], rel=1e-6)
    assert found["inside"]["retained"] in (None, pytest.approx(0, abs=1e-3))
