"""Draw all randomness that privacy depends on, sampling draws and noise, from one ChaCha20 stream.

Invariants
- Output is a function of key, label and the order of calls alone. No global generator is read or changed.
- Substreams with different names are independent: each has its own key, by HKDF-SHA256 (RFC 5869).
- Comparisons are exact, on 64-bit integers. No float decides which record is sampled.

Noise is made of the words of a stream by `fedmem.privacy.rounded_gaussian`.

>>> stream = PrivacyStream(b"\\0" * 32, b"run-1")
>>> int(stream.substream(b"sample").bernoulli(1000, 0.1).sum()), stream.words(3).dtype
(88, dtype('uint64'))
"""

import math
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32


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
        """Return an independent stream. Equal names give equal streams, whatever was drawn from this one before.

        Args:
            name: the purpose of the stream.
        """
        return PrivacyStream(self._key, b"substream\0" + name)

    def words(self, n: int) -> NDArray[np.uint64]:
        """Return the next `n` words of the stream: independent and uniform on 64 bits.

        Args:
            n: number of words, at least 0.
        """
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
        uniform = self.words(n)
        if rate == 1.0:
            return np.ones(n, dtype=np.bool_)
        return uniform < np.uint64(math.floor(Fraction(rate) * 2**64))
