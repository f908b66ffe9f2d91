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
from dataclasses import astuple, dataclass

from fedmem.canonical import digest
from fedmem.federation.flower import Message, RecordDict, error_to_proto, recorddict_to_proto


@dataclass(frozen=True, order=True)
class Entry:
    """One message: direction ("down", "up", or "state" for what a device left in Flower's context)."""

    group: str
    direction: str
    message: str
    node: int
    nbytes: int
    sha256: str


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
        self.entries: list[Entry] = []

    def add(self, direction: str, message: Message, data: bytes) -> None:
        """Enter one message whose payload is `data`."""
        meta = message.metadata
        node = meta.dst_node_id if direction == "down" else meta.src_node_id
        kind = meta.message_type + (" error" if message.has_error() else "")
        sha = hashlib.sha256(data).hexdigest()
        self.entries.append(Entry(meta.group_id, direction, kind, node, len(data), sha))

    def traffic(self, group: str) -> tuple[int, int]:
        """Payload bytes (down, up) of one round."""
        chosen = [entry for entry in self.entries if entry.group == group]
        down = sum(entry.nbytes for entry in chosen if entry.direction == "down")
        return down, sum(entry.nbytes for entry in chosen) - down

    def digest(self, group: str | None = None) -> str:
        """SHA-256 over the sorted entries of one round, or of all."""
        chosen = sorted(entry for entry in self.entries if group in (None, entry.group))
        return digest([list(astuple(entry)) for entry in chosen])
