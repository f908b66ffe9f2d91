import copy
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmem.privacy.stream import PrivacyStream

KEY = bytes(range(32))
VECTOR_BITS = [1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1]


def stream(label=b"run"):
    return PrivacyStream(KEY, label)


def test_second_reader_of_the_keystream():
    """Bits, thresholds and order as the docstring states them, from the primitives alone."""
    key = HKDF(SHA256(), 32, salt=None, info=b"fedmem privacy stream/1\0run").derive(KEY)
    bits = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * 100))
    expected = [int.from_bytes(bits[8 * i : 8 * i + 8], "little") < 0.3 * 2**64 for i in range(100)]
    assert stream().bernoulli(100, 0.3).tolist() == expected


def test_vector():
    assert stream().substream(b"sample").bernoulli(16, 0.5).astype(int).tolist() == VECTOR_BITS


def test_streams_of_different_labels_keys_and_substreams_are_uncorrelated():
    streams = [stream(), stream(b"run-2"), PrivacyStream(bytes(32), b"run")]
    streams += [stream().substream(b"step-%d" % step) for step in range(20)]
    samples = np.stack([s.words(50_000).astype(float) for s in streams])
    assert np.abs(np.corrcoef(samples) - np.eye(len(samples))).max() < 5 / np.sqrt(50_000)
    again = np.stack([samples[0], stream().words(50_000)])
    assert np.corrcoef(again)[0, 1] == pytest.approx(1.0)


def test_substreams_do_not_depend_on_what_was_drawn_before():
    used = stream()
    used.words(10)
    assert np.array_equal(used.substream(b"a").words(9), stream().substream(b"a").words(9))
    assert not np.array_equal(stream().substream(b"a").words(9), stream(b"substream\0a").words(9))


def test_a_record_is_sampled_alike_whoever_else_is_there():
    assert np.array_equal(stream().bernoulli(1000, 0.2)[:10], stream().bernoulli(10, 0.2))


@pytest.mark.parametrize("rate", [0.001, 0.15, 0.5, 0.999])
def test_rate(rate):
    n = 400_000
    deviation = abs(stream().bernoulli(n, rate).mean() - rate) / np.sqrt(rate * (1 - rate) / n)
    assert deviation < 4


def test_rates_at_the_ends_are_exact():
    assert not stream().bernoulli(10_000, 0.0).any()
    assert not stream().bernoulli(10_000, 1e-300).any()
    assert stream().bernoulli(10_000, 1.0).all()
    assert stream().bernoulli(10_000, 1 - 2**-53).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), float("inf")])
def test_impossible_rates_are_refused(wrong):
    with pytest.raises(ValueError, match="rate"):
        stream().bernoulli(3, wrong)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_is_never_duplicated(duplicate):
    with pytest.raises(TypeError, match="never copied"):
        duplicate(stream())


def test_repr_and_key_size():
    assert KEY.hex() not in repr(stream())
    with pytest.raises(ValueError, match="32 bytes"):
        PrivacyStream(b"short", b"run")
