"""Everything that is handed to Flower, as evidence for I1: what left, in what order, of what size.

Invariants
- An entry covers message type, round, both nodes, every record with keys, dtypes, shapes and bytes, errors included.
- Flower's own clock fields (created_at, ttl) and message ids are not ours and stay out; nothing else does.
- A round's digest does not depend on the order in which replies arrive.

>>> log = Transcript()
>>> log.digest() == Transcript().digest(), log.traffic("1")
(True, (0, 0))
"""

import hashlib
from typing import NamedTuple

from fedmem.federation.flower import Message, RecordDict, error_to_proto, recorddict_to_proto
from fedmem.storage.canonical import digest


class TranscriptEntry(NamedTuple):
    """One message: direction ("down", "up", or "state" for what a device left in Flower's context)."""

    group: str
    direction: str
    message: str
    node: int
    nbytes: int
    sha256: str


class Arrived(Message):  # type: ignore[misc]  # mypy does not follow flwr
    """A message as it arrived, with the evidence that was taken from its bytes: nobody serialises it again."""

    def __init__(self, content: RecordDict, message: Message, evidence: "Evidence") -> None:
        super().__init__(content, metadata=message.metadata)
        self.__dict__["evidence"] = evidence


class Evidence(NamedTuple):
    """Size and digest of a payload."""

    nbytes: int
    sha256: str


def evidence(data: bytes) -> Evidence:
    """What a transcript keeps of a payload."""
    return Evidence(len(data), hashlib.sha256(data).hexdigest())


def evidence_of(message: Message) -> Evidence:
    """The evidence of a message's payload, taken from its bytes once."""
    return message.__dict__["evidence"] if isinstance(message, Arrived) else evidence(payload(message))


def payload(message: Message) -> bytes:
    """The content or error of a message as Flower serialises it."""
    if message.has_error():
        return bytes(error_to_proto(message.error).SerializeToString(deterministic=True))
    return encode(message.content)


def encode(content: RecordDict) -> bytes:
    """A record dict as Flower serialises it."""
    return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))


class Transcript:
    """A growing list of entries."""

    def __init__(self) -> None:
        self.entries: list[TranscriptEntry] = []

    def add(self, direction: str, message: Message, found: Evidence) -> None:
        """Enter one message."""
        meta = message.metadata
        node = meta.dst_node_id if direction == "down" else meta.src_node_id
        kind = meta.message_type + (" error" if message.has_error() else "")
        self.entries.append(TranscriptEntry(meta.group_id, direction, kind, node, *found))

    def traffic(self, group: str) -> tuple[int, int]:
        """Payload bytes (down, up) of one round."""
        chosen = [entry for entry in self.entries if entry.group == group]
        down = sum(entry.nbytes for entry in chosen if entry.direction == "down")
        return down, sum(entry.nbytes for entry in chosen) - down

    def digest(self, group: str | None = None) -> str:
        """SHA-256 over the sorted entries of one round, or of all."""
        chosen = sorted(entry for entry in self.entries if group in (None, entry.group))
        return digest([list(entry) for entry in chosen])
