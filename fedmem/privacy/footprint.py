"""Compute the memory of a private training from public sizes, and the room that a memory limit leaves for records.

Invariants
- The micro-batch is a function of the limit and of public sizes alone. So the same limit gives the same bytes of a
  block in every session of a run.
- A limit with too little room for one sequence is refused, before anything is read or charged.
- The block is the same, to float rounding, for every micro-batch (`fedmem.privacy.dpsgd`).

The factors are upper bounds on measurements with `nano`, `tiny` and `small` anchors, 128 to 512 tokens and 512 to
16,384 words.

    footprint = fit_footprint(1 << 30, spec, vocabulary=16384, length=128)
    RuntimeOptions(footprint.micro_batch)
"""

from dataclasses import dataclass

from fedmem.errors import Refused
from fedmem.memory.spec import MemorySpec

PROCESS = 560 << 20  # Python with torch, transformers, accounting and an open vault
MOST = 16  # sequences of a micro-batch; more are not faster on a CPU
FLOAT = 4
TEXT = 64  # bytes of memory, at most, to tokenise one byte of text
TOKEN = 8  # bytes of a token


@dataclass(frozen=True)
class Footprint:
    """The sizes that keep a training below a memory limit.

    Attributes:
        micro_batch: number of sequences at a time.
        room: bytes for the tokens of all records and for tokenising the longest text.
    """

    micro_batch: int
    room: int


def fit_footprint(limit: int, spec: MemorySpec, vocabulary: int, length: int) -> Footprint:
    """Return the sizes that keep a training below a memory limit.

    Records get at least half of the memory that process, anchor and block leave.

    Args:
        limit: the memory limit, in bytes.
        spec: shape of the block, and of its anchor.
        vocabulary: entries of the tokenizer.
        length: tokens of a sequence.

    Raises:
        Refused: the limit is too small; the message names the smallest possible one.
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
    """Return the bytes of the process, the anchor, and sixteen float32 tensors of the block's size.

    These tensors are rows, moments, gradient and a checkpoint; sum, noise and update take 64 bits for each value.

    Args:
        spec: shape of the block, and of its anchor.
        vocabulary: entries of the tokenizer.
    """
    shape = spec.shape
    layer = shape.d_model * (4 * shape.heads * shape.head_dim + 3 * shape.ffn)
    return PROCESS + FLOAT * (2 * vocabulary * shape.d_model + spec.layers * layer + 16 * spec.fetch_size)


def per_sequence_bytes(spec: MemorySpec, vocabulary: int, length: int) -> int:
    """Return the bytes of one more sequence in a micro-batch: logits, activations, attention, and its gradient.

    Args:
        spec: shape of the block, and of its anchor.
        vocabulary: entries of the tokenizer.
        length: tokens of a sequence.
    """
    inner = 18 * spec.shape.d_model + 5 * spec.shape.ffn + spec.shape.heads * length
    return FLOAT * (length * (4 * vocabulary + spec.layers * inner) + 5 * spec.fetch_size)


def record_bytes(text: str) -> int:
    """Return the bytes that tokenising the text of one record needs; they are free again afterwards.

    Args:
        text: the text of the record.
    """
    return TEXT * len(text.encode())


def kept_bytes(sequences: int, length: int) -> int:
    """Return the bytes of the tokens of several sequences; they are kept during the whole training.

    Args:
        sequences: number of sequences of all records.
        length: tokens of a sequence.
    """
    return TOKEN * sequences * length
