"""Draw all randomness that privacy depends on, sampling draws and noise, from one ChaCha20 stream.

Invariants
- Output is a function of key, label and the order of calls alone. No global generator is read or changed.
- Substreams with different names are independent: each has its own key, by HKDF-SHA256 (RFC 5869).
- Comparisons are exact, on 64-bit integers. No float decides which record is sampled.

Floating-point attacks (Mironov 2012; Holohan and Braghin 2021): one float64 Gaussian sample takes few values, and its
low bits can reveal the sum without noise. Each output here is the sum of four independent Box-Muller draws, rescaled.
An attacker would have to solve for four uniform pairs at once.

>>> stream = PrivacyStream(b"\\0" * 32, b"run-1")
>>> int(stream.substream(b"sample").bernoulli(1000, 0.1).sum()), stream.normal(3, std=1.0).dtype
(88, dtype('float32'))
"""

import math
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
DRAWS = 4
# Pairs in a pass: small enough for the cache, because fresh pages cost more than the arithmetic.
CHUNK = 1 << 12
_TO_UNIT = 2.0**-53
_ZEROS = bytes(8 * 2 * DRAWS * CHUNK)
# A full turn is divided into so many sectors. Within a sector, two terms of a series give the sine to float64. numpy
# only: a forked worker would wait for the threads of another library, which it does not have.
SECTORS = 1 << 12
_SHIFT = np.uint64(64 - 12)
_WITHIN = np.uint64((1 << (53 - 12)) - 1)
_MIDDLES = np.exp(2j * math.pi / SECTORS * (np.arange(SECTORS) + 0.5))


class PrivacyStream:
    """A deterministic random stream under a secret 32-byte key.

    Guarantees: if ChaCha20 (RFC 8439) is a pseudo-random function, the outputs of all labels and substreams are
    computationally indistinguishable from independent uniform bits. A holder of the key can remove the noise. So the
    key is sealed, never logged, and destroyed before the block is used (docs/design.md, §7).
    A stream with the same key and label repeats its output: never open one twice for different data.

    Args:
        key: the secret, 32 bytes.
        label: the purpose of the stream.

    Raises:
        ValueError: the key has another length.
    """

    def __init__(self, key: bytes, label: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a privacy stream needs a key of {KEY_BYTES} bytes")
        self._key = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"fedmem privacy stream/1\0" + label).derive(key)
        # The derived key is used for nothing else, so a zero counter and nonce are fresh.
        self._cipher = Cipher(algorithms.ChaCha20(self._key, bytes(16)), mode=None).encryptor()

    def __repr__(self) -> str:
        return "PrivacyStream(...)"

    def __reduce__(self) -> str:
        raise TypeError("a privacy stream is never copied or serialised: a copy would repeat its noise")

    def substream(self, name: bytes) -> "PrivacyStream":
        """Return an independent stream. Equal names give equal streams, whatever was drawn from this one before."""
        return PrivacyStream(self._key, b"substream\0" + name)

    def _uniform(self, n: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._cipher.update(bytes(8 * n)), dtype="<u8")

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        """Return `n` independent draws, each True with probability floor(rate * 2**64) / 2**64.

        Guarantees: the probability is never above `rate`, as amplification by sampling requires.

        | case | result |
        |---|---|
        | `n` = 0 | an empty array |
        | rate 0 | all False |
        | rate 1 | all True |

        Args:
            n: number of draws, at least 0.
            rate: in [0, 1].

        Raises:
            ValueError: the rate is outside [0, 1], or NaN.
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError("a sampling rate lies in [0, 1]")
        uniform = self._uniform(n)
        if rate == 1.0:
            return np.ones(n, dtype=np.bool_)
        return uniform < np.uint64(math.floor(Fraction(rate) * 2**64))

    def normal(self, n: int, std: float) -> NDArray[np.float32]:
        """Return `n` independent Gaussian samples, computed in float64, as float32.

        Guarantees: mean zero and the given std. Tails are cut beyond 17 std.

        | case | result |
        |---|---|
        | `n` = 0 | an empty array |
        | `std` = 0 | zeros |

        Args:
            n: number of samples, at least 0.
            std: standard deviation, finite and at least 0.

        Raises:
            ValueError: the std is out of range.
        """
        if not 0.0 <= std < math.inf:
            raise ValueError("a standard deviation is a finite number that is not negative")
        out = np.empty(n + n % 2, dtype=np.float32)
        half, scale = len(out) // 2, std / math.sqrt(DRAWS)
        scratch = _Scratch(min(half, CHUNK))
        for start in range(0, half, CHUNK):
            stop = min(start + CHUNK, half)
            sums = scratch.sums(self._cipher, stop - start)
            np.multiply(sums.real, scale, out=out[start:stop], casting="same_kind")
            np.multiply(sums.imag, scale, out=out[half + start : half + stop], casting="same_kind")
        return out[:n]


class _Scratch:
    """The memory of passes over at most `size` pairs; every pass reuses it."""

    def __init__(self, size: int) -> None:
        self.keystream = bytearray(8 * 2 * DRAWS * size)
        self.real = np.empty((4, DRAWS * size))
        self.complex = np.empty((2, DRAWS * size), dtype=np.complex128)

    def sums(self, cipher: CipherContext, n: int) -> NDArray[np.complex128]:
        """Return `n` sums of DRAWS Box-Muller draws: cosines in the real part, sines of the same pairs in the other."""
        words = 2 * DRAWS * n
        cipher.update_into(memoryview(_ZEROS)[: 8 * words], self.keystream)
        first, second = np.frombuffer(self.keystream, dtype="<u8", count=words).reshape(2, -1)
        radius, *spare = self.real[:, : DRAWS * n]
        draws, middle = self.complex[:, : DRAWS * n]
        _compute_radii(first, radius)
        np.take(_MIDDLES, (second >> _SHIFT).view(np.int64), out=middle, mode="clip")
        _compute_points_in_sector(second, radius, spare, draws)
        sums: NDArray[np.complex128] = np.multiply(draws, middle, out=draws).reshape(DRAWS, n).sum(0)
        return sums


def _compute_radii(bits: NDArray[np.uint64], out: NDArray[np.float64]) -> None:
    """Write sqrt(-2 log(1 - u)) to `out`, for u from the upper 53 bits of each word.

    1 - u is in (0, 1], so the logarithm is finite.
    """
    np.copyto(out, np.right_shift(bits, np.uint64(11), out=bits), casting="same_kind")
    np.log(np.subtract(1.0, np.multiply(out, _TO_UNIT, out=out), out=out), out=out)
    np.sqrt(np.multiply(out, -2.0, out=out), out=out)


def _compute_points_in_sector(
    bits: NDArray[np.uint64], radius: NDArray[np.float64], spare: list[NDArray[np.float64]], out: NDArray[np.complex128]
) -> None:
    """Write radius * exp(i angle) to `out`, with the angle measured from the middle of its sector.

    The upper 53 bits of each word are the angle; `spare` is working memory.
    """
    angle, square, term = spare
    np.right_shift(bits, np.uint64(11), out=bits)
    np.copyto(angle, np.bitwise_and(bits, _WITHIN, out=bits), casting="same_kind")
    np.subtract(np.multiply(angle, 2 * math.pi * _TO_UNIT, out=angle), math.pi / SECTORS, out=angle)
    np.multiply(angle, angle, out=square)
    np.subtract(np.multiply(square, 1 / 24, out=term), 1 / 2, out=term)
    np.add(np.multiply(term, square, out=term), 1.0, out=term)
    np.multiply(term, radius, out=out.real)
    np.add(np.multiply(square, -1 / 6, out=square), 1.0, out=square)
    np.multiply(np.multiply(square, angle, out=square), radius, out=out.imag)
