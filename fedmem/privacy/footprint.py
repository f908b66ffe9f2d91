"""How much memory a private training takes, from public sizes, and what of a limit is left for the records.

Invariants
- The micro-batch is a function of the limit and of public sizes alone: the same limit gives the same bytes of a block,
  in every session of a run.
- A limit that one sequence does not fit into is refused, before anything is read or charged.
- Whatever the micro-batch, the block is the same to float rounding (`fedmem.privacy.dpsgd`).

The factors are upper bounds of what was measured with `nano`, `tiny` and `small` anchors at 128 to 512 tokens and 512
to 16,384 words.

    footprint = fitting(1 << 30, spec, vocabulary=16384, length=128)
    RuntimeOptions(footprint.micro_batch)
"""

from dataclasses import dataclass

from fedmem.errors import Refused
from fedmem.memory.spec import MemorySpec

PROCESS = 560 << 20  # Python with torch, transformers, accounting and an open vault
MOST = 16  # sequences of a micro-batch; more are not faster on a CPU
FLOAT = 4
TEXT = 64  # bytes that tokenising takes for a byte of one record's text, at most
TOKEN = 8


@dataclass(frozen=True)
class Footprint:
    """`micro_batch` sequences at a time, and `room` bytes for all records as tokens and the text of the longest."""

    micro_batch: int
    room: int


def fitting(limit: int, spec: MemorySpec, vocabulary: int, length: int) -> Footprint:
    """How to stay below `limit` bytes with a block of this spec, on an anchor of its shape, and sequences of `length`.

    Records get at least half of what is left beside the process and the anchor. Raises Refused, with the least limit.
    """
    sequence = per_sequence_bytes(spec, vocabulary, length)
    spare = limit - fixed_bytes(spec, vocabulary)
    if spare < 2 * sequence:
        least = -(-(limit - spare + 2 * sequence) // (1 << 20))
        raise Refused(
            f"The memory limit is too small for this release: its training needs at least {least} MB. Nothing was "
            "charged; give a higher limit, or a release with a smaller anchor."
        )
    micro_batch = min(MOST, spare // (2 * sequence))
    return Footprint(micro_batch, spare - micro_batch * sequence)


def fixed_bytes(spec: MemorySpec, vocabulary: int) -> int:
    """The process, the anchor, and eight tensors of the block's size: rows, moments, sum, noise and a checkpoint."""
    shape = spec.shape
    layer = shape.d_model * (4 * shape.heads * shape.head_dim + 3 * shape.ffn)
    return PROCESS + FLOAT * (2 * vocabulary * shape.d_model + spec.layers * layer + 8 * spec.fetch_size)


def per_sequence_bytes(spec: MemorySpec, vocabulary: int, length: int) -> int:
    """What one more sequence in a micro-batch takes: logits, activations, attention, and its own gradient."""
    inner = 18 * spec.shape.d_model + 5 * spec.shape.ffn + spec.shape.heads * length
    return FLOAT * (length * (4 * vocabulary + spec.layers * inner) + 5 * spec.fetch_size)


def record_bytes(text: str) -> int:
    """What tokenising one record takes for a moment."""
    return TEXT * len(text.encode())


def kept_bytes(sequences: int, length: int) -> int:
    """What this many sequences take as tokens, for the whole training."""
    return TOKEN * sequences * length
