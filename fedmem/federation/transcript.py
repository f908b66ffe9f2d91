"""The record of every message that is handed to Flower: sizes and digests, as evidence for I1.

Invariants
- An entry covers message type, round, the device's node, and every record with keys, dtypes, shapes and bytes, or the
  error.
- It leaves out Flower's clock fields (created_at, ttl) and message ids, and nothing else.
- A round's digest does not depend on the order in which replies arrive.
- What a peer wrote into the head of a message is kept in few bytes: a long or foreign text becomes "?".

>>> log = Transcript()
>>> log.digest() == Transcript().digest(), log.traffic("1")
(True, (0, 0))
"""

from typing import NamedTuple

from fedmem.federation.flower import ArrayRecord, Message, RecordDict, error_to_proto, recorddict_to_proto
from fedmem.federation.payload import Evidence, count_bytes, measure_arrays, measure_payload
from fedmem.storage.canonical import digest

_LONGEST_LABEL = 64


class TranscriptEntry(NamedTuple):
    """One message.

    Attributes:
        group: number of the round, as Flower's group id.
        direction: "down", "up", or "state" for the content that a device left in Flower's context.
        message: message type, followed by " error" for an error.
        node: node id of the device.
        nbytes: bytes of the payload.
        sha256: SHA-256 of the payload, in hex.
    """

    group: str
    direction: str
    message: str
    node: int
    nbytes: int
    sha256: str


class Arrived(Message):  # type: ignore[misc]  # mypy does not follow flwr
    """A message with the evidence of its bytes as they arrived, so that it need not be serialised again.

    Args:
        content: the content, parsed from the bytes.
        message: the message whose metadata it takes.
        evidence: size and digest of the bytes.
    """

    def __init__(self, content: RecordDict, message: Message, evidence: Evidence) -> None:
        super().__init__(content, metadata=message.metadata)
        self.__dict__["evidence"] = evidence


def read_evidence(message: Message) -> Evidence:
    """Return size and digest of a message's payload; those it arrived with, where it has them.

    Args:
        message: a message in either direction.
    """
    if isinstance(message, Arrived):
        return message.__dict__["evidence"]  # type: ignore[no-any-return]
    if message.has_content() and all(type(record) is ArrayRecord for record in message.content.values()):
        return measure_arrays(message.content)
    return measure_payload(serialise_payload(message))


def estimate_evidence(message: Message) -> Evidence:
    """Return evidence of a reply that was refused unread: its size, and the digest of no bytes. Never raise.

    Args:
        message: a reply as it arrived; nothing of it is trusted.
    """
    if isinstance(message, Arrived):
        return read_evidence(message)
    return Evidence(count_bytes(message.__dict__.get("_content")), measure_payload(b"").sha256)


def serialise_payload(message: Message) -> bytes:
    """Return the content or the error of a message, as Flower serialises it.

    Args:
        message: a message in either direction.
    """
    if message.has_error():
        return bytes(error_to_proto(message.error).SerializeToString(deterministic=True))
    return serialise_content(message.content)


def serialise_content(content: RecordDict) -> bytes:
    """Return a record dict as Flower serialises it.

    Args:
        content: the content of a message.
    """
    return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))


class Transcript:
    """The list of all entries of a simulation, in the order in which they were added."""

    def __init__(self) -> None:
        self.entries: list[TranscriptEntry] = []

    def add(self, direction: str, message: Message, proof: Evidence) -> None:
        """Add the entry of one message.

        Args:
            direction: "down", "up" or "state".
            message: gives round, message type and node.
            proof: size and digest of its payload.
        """
        meta = message.metadata
        node = meta.dst_node_id if direction == "down" else meta.src_node_id
        kind = _label(meta.message_type) + (" error" if message.has_error() else "")
        self.entries.append(TranscriptEntry(_label(meta.group_id), direction, kind, clean_number(node), *proof))

    def traffic(self, group: str) -> tuple[int, int]:
        """Return the payload bytes (down, up) of one round, named by its Flower group.

        Args:
            group: number of the round, as Flower's group id.
        """
        chosen = [entry for entry in self.entries if entry.group == group]
        down = sum(entry.nbytes for entry in chosen if entry.direction == "down")
        return down, sum(entry.nbytes for entry in chosen) - down

    def digest(self, group: str | None = None) -> str:
        """Return the SHA-256 over the sorted entries of one round, or of all rounds.

        Args:
            group: number of the round, as Flower's group id; None for all rounds.
        """
        chosen = sorted(entry for entry in self.entries if group in (None, entry.group))
        return digest([list(entry) for entry in chosen])


def _label(text: object) -> str:
    return text if isinstance(text, str) and len(text) <= _LONGEST_LABEL and text.isascii() else "?"


def clean_number(node: object) -> int:
    """Return the id of a node as a peer gave it, or 0 if it is none.

    Args:
        node: the id; nothing of it is trusted.
    """
    return node if isinstance(node, int) and -(2**63) <= node < 2**64 else 0
