"""bf16 without a bf16 dtype is that of torch."""

import numpy as np
import pytest

from fedmem.federation import bf16


def test_bf16_is_what_torch_makes() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).normal(size=5000).astype(np.float32) * np.float32(10.0) ** np.arange(
        -30, 20
    ).repeat(100)
    values = np.concatenate([values, np.array([0.0, -0.0, np.inf, -np.inf, 3.4e38], np.float32)]).astype(np.float32)
    want = torch.from_numpy(values).to(torch.bfloat16)
    assert (bf16.encode(values) == want.view(torch.uint16).numpy()).all()
    assert (bf16.decode(bf16.encode(values)) == want.float().numpy()).all()
    assert np.isnan(bf16.decode(bf16.encode(np.array([np.nan], np.float32)))).all()


def test_half_way_values_go_to_the_even_neighbour() -> None:
    one, step = np.float32(1.0).view(np.uint32), np.uint32(1 << 16)
    half_way = np.array([one + (step >> 1), one + step + (step >> 1)], np.uint32).view(np.float32)
    assert (bf16.encode(half_way).astype(np.uint32) << 16).tolist() == [one, one + 2 * step]


def test_every_nan_stays_one_and_too_large_values_become_infinite() -> None:
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFC00000], np.uint32).view(np.float32)
    assert np.isnan(bf16.decode(bf16.encode(nans))).all()
    largest = np.finfo(np.float32).max
    assert bf16.decode(bf16.encode(np.array([largest, -largest], np.float32))).tolist() == [np.inf, -np.inf]


def test_decoding_is_exact_for_all_bits() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[np.isfinite(bf16.decode(bits))].reshape(2, -1)
    assert (bf16.encode(bf16.decode(finite)) == finite).all()
