import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmem.privacy.clip import INSIDE, ClippedSum, clip_summed
from tests.privacy.reference import clip_records, sum_by_record

SHAPES = ((5, 3), (7,))
KINDS = ("normal", "zero", "tiny", "huge", "enormous", "nan", "inf", "one_nan", "duplicate")


def record_gradient(kind, generator):
    """One sequence's gradient, one tensor per parameter."""
    scale = {"zero": 0.0, "tiny": 1e-30, "huge": 1e12, "enormous": 3e38}.get(kind, 1.0)
    grads = [(2 * torch.rand(shape, generator=generator) - 1) * scale for shape in SHAPES]
    if kind in ("nan", "inf"):
        return [torch.full_like(g, float(kind)) for g in grads]
    if kind == "one_nan":
        grads[1][3] = math.nan
    return grads


def norm(values):
    return float(torch.sqrt(sum((v.double() ** 2).sum() for v in values)))


def batch(kinds, seed):
    """Gradients `[N, ...]` and records of a batch in which record i has 1 + i % 3 sequences of its kind."""
    generator = torch.Generator().manual_seed(seed)
    rows, owners, last = [], [], None
    for record, kind in enumerate(kinds):
        for _ in range(1 + record % 3):
            fresh = record_gradient(kind, generator)
            last = last if kind == "duplicate" and last else fresh
            rows.append(last)
            owners.append(record)
    return [torch.stack(parts) for parts in zip(*rows, strict=True)], torch.tensor(owners)


def moved_by_removal(kinds, removed, clip, seed, summed=clip_records):
    grads, record_N = batch(kinds, seed)
    whole = summed(grads, record_N, len(kinds), clip)
    keep = record_N != removed
    # The neighbour has one record fewer, so those after it move up.
    fewer = record_N[keep] - (record_N[keep] > removed).long()
    part = summed([g[keep] for g in grads], fewer, len(kinds) - 1, clip)
    return norm([a - b for a, b in zip(whole.value, part.value, strict=True)])


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=12),
    data=st.data(),
    clip=st.sampled_from([1e-3, 0.1, 1.0, 50.0]),
    seed=st.integers(0, 10**6),
)
def test_removing_any_record_moves_the_sum_by_at_most_clip(kinds, data, clip, seed):
    removed = data.draw(st.integers(0, len(kinds) - 1))
    assert moved_by_removal(kinds, removed, clip, seed) <= clip * (1 + 1e-5)


def test_removing_a_huge_record_moves_the_sum_by_at_most_clip():
    assert moved_by_removal(["normal", "huge"], 1, 0.1, 0) <= 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("kind", KINDS[3:-1])
def test_the_bound_is_broken_without_a_clip(kind):
    def unclipped(grads, record_N, records, _clip):
        return ClippedSum([sum_by_record(g, record_N, records).sum(0) for g in grads], _clip)

    moved = moved_by_removal(["normal", kind, "normal"], 1, 0.1, 0, unclipped)
    assert not moved <= 0.1 * (1 + 1e-5)


def test_the_bound_is_broken_by_clipping_the_batch():
    def batch_clipped(grads, record_N, records, clip):
        total = [sum_by_record(g, record_N, records).sum(0) for g in grads]
        return ClippedSum([t * min(1.0, clip / norm(total)) for t in total], clip)

    assert moved_by_removal(["normal", "huge"], 1, 0.1, 0, batch_clipped) > 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["nan", "inf", "one_nan", "enormous", "zero"])
def test_unusable_records_count_as_zero(kind):
    grads, record_N = batch([kind, "normal"], 3)
    alone = [g[record_N == 1] for g in grads]
    expected = clip_records(alone, torch.zeros(len(alone[0]), dtype=torch.int64), 1, 0.1)
    found = clip_records(grads, record_N, 2, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(found.value, expected.value, strict=True))


def test_gradients_within_the_ball_are_left_alone():
    grads = [torch.full((2, 3), 0.01)]
    assert torch.equal(clip_summed(grads, 1.0).value[0], grads[0].sum(0))


def test_a_clipped_record_lies_just_inside_the_ball():
    found = norm(clip_summed([torch.rand(1, 1000) * 1e6], 0.1).value)
    assert 0.1 * (2 * INSIDE - 1) * (1 - 1e-7) <= found <= 0.1


def test_sequences_of_a_record_are_summed_before_the_clip():
    grads = [torch.tensor([[3.0], [-3.0], [4.0]])]
    found = clip_records(grads, torch.tensor([0, 0, 1]), 3, 1.0)
    assert found.value[0].item() == pytest.approx(1.0)


def test_half_precision_gradients_are_summed_in_float32():
    found = clip_records([torch.ones(4, 2, dtype=torch.bfloat16)], torch.tensor([0, 0, 1, 1]), 2, 0.1)
    assert found.value[0].dtype == torch.float32


def test_no_record_gives_zero_with_the_same_sensitivity():
    found = clip_summed([torch.zeros(0, 3)], 0.1)
    assert torch.equal(found.value[0], torch.zeros(3))
    assert (found + ClippedSum.zero([torch.zeros(3)], 0.1)).sensitivity == 0.1


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_impossible_clip_norms_are_refused(clip):
    with pytest.raises(ValueError, match="clip norm"):
        clip_summed([torch.zeros(1, 1)], clip)
