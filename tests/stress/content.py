"""Make the content that workers write, so that a checker knows from a text alone the rest of its record.

Invariants
- Every text, topic and block begins with a canary, which no file of a vault may hold in clear.
- A text names its topic; its vector follows from the text. So a record that was mixed up is recognised.
- No two texts are equal.
"""

import hashlib
import os

import numpy as np
import numpy.typing as npt
from numpy.random import (
    default_rng,
)  # here: numpy would load it in a thread, and a fork then meets the lock of an import

from fedmem.vault.vault import NewRecord, Record

SUBJECT, RELEASE = "subject-canary-51aa", "release-1"
CANARIES = (b"text-canary-7f3a", b"topic-canary-9c1e", b"rows-canary-51d2", SUBJECT.encode())
TEXT, TOPIC, ROWS = (canary.decode() for canary in CANARIES[:3])
TOPICS = [f"{TOPIC}-{number}" for number in range(12)]
WIDTH = 128  # of the static embedder, whose records the clients of some workers add


def new_text(topic: str | None) -> str:
    """Return a text that nobody has written before."""
    return f"{TEXT} {os.urandom(16).hex()} @{topic or ''}"


def new_rows() -> bytes:
    """Return the rows of a block, about 8 KiB, that nobody has written before."""
    return f"{ROWS} {os.urandom(16).hex()} ".encode() * 130


def vector_of(text: str) -> npt.NDArray[np.float32]:
    """Return the vector of a text, float32 [WIDTH]."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def record(text: str) -> NewRecord:
    """Return the record of a text."""
    return NewRecord(text, topic_of(text), (len(text),), vector_of(text), RELEASE)


def topic_of(text: str) -> str | None:
    """Return the topic that a text names; None for a shareable one."""
    return text.partition("@")[2] or None


def digest_of(text: str) -> str:
    """Return the digest by which a journal names a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_mixed_up(stored: Record) -> bool:
    """Return True if topic, path or vector of a stored record do not belong to its text."""
    if "@" not in stored.text:  # a client embedded and placed it
        return False
    expected = record(stored.text)
    facts = (stored.topic, stored.path, stored.vector.tobytes())
    return facts != (expected.topic, expected.path, expected.vector.tobytes())
