"""Generate answers inside the boundary, from the anchor, the shared blocks of a path and the private blocks.

Invariants
- Private rows are read from the vault for one answer. They are attached while a token is computed, and detached after
  it. They are written to no file, to no cache that outlives the answer, and to no other process.
- Rows and KV cache are overwritten when the answer ends or is abandoned, and when the vault is closed or notices an
  erasure, also while the reader of a stream is waiting.
- The vault is checked before each piece. If it was closed, or any thread or process has erased something, the answer
  ends with an error.
- Several threads may answer at once. A stream may be read by another thread than the one that started it.
- Decoding is greedy: the same prompt, release and blocks give the same tokens.

    for piece in Answerer(release).answer("Which dose?", path, vault, blocks, limit=32):
        ...
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedmem.anchor.decoding import ContinuationDecoder
from fedmem.anchor.tokenizer import end_of_document, start_of_document, text_ids
from fedmem.device.private_fetch import overwrite_products, private_sources, shared_and_private
from fedmem.errors import Busy, UsageError
from fedmem.memory.attach import attach
from fedmem.memory.kinds import ActiveMemory
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault


class Answerer:
    """The anchor of a release with memory attached. One Answerer is used for many answers."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.start, self.end = start_of_document(release.tokenizer), end_of_document(release.tokenizer)
        self.model = release.anchor().eval()
        self.memory = attach(self.model)

    def answer(
        self, prompt: str, path: Sequence[int], vault: Vault, blocks: Sequence[BlockInfo], limit: int
    ) -> Iterator[str]:
        """Return the pieces of an answer as they are generated, from the blocks as they are now.

        Args:
            prompt: the text to continue; only its end is used if it is too long for the anchor's context.
            path: the prompt's path in the release's tree, one block number for each level.
            vault: the vault of `blocks`.
            blocks: the private blocks to use, in this order.
            limit: the greatest number of tokens of the answer, at least 1.

        Raises:
            UsageError: the limit leaves no room for the prompt. From the iterator: the vault was closed.
            Busy: from the iterator: something was erased since this call.
        """
        room = int(self.model.config.max_position_embeddings) - limit
        if limit < 1 or room < 2:
            raise UsageError("max_new_tokens must be at least 1 and leave room for the prompt in the anchor's context.")
        generation = vault.generation
        sources = self.sources(path, vault, blocks)
        ids = [self.start, *text_ids(self.release.tokenizer, [prompt])[0][1 - room :]]
        cache = vault.core.memory.keep(AnswerCache())
        decoder = ContinuationDecoder(self.release.tokenizer, ids)
        return _pieces(decoder, self.tokens(ids, sources, limit, cache, blocks), vault, generation)

    def sources(self, path: Sequence[int], vault: Vault, blocks: Sequence[BlockInfo]) -> list[ActiveMemory]:
        """Return the memory sources of an answer: the shared rows of the path, then the private rows of each block."""
        return shared_and_private(self.release, [path], private_sources(vault, self.release, blocks))

    def tokens(
        self,
        ids: Sequence[int],
        sources: Sequence[ActiveMemory],
        limit: int,
        cache: "AnswerCache",
        blocks: Sequence[BlockInfo],
    ) -> Iterator[int]:
        """Return the tokens of the greedy continuation of `ids`, until the document ends or after `limit` tokens.

        The sources, which include those of `blocks`, are attached only while a token is computed. `cache`, which is
        empty, is overwritten at the end.
        """
        tokens_1T = torch.tensor([list(ids)])
        try:
            for _ in range(limit):
                # Never attached across a yield: the code that reads the generator would then compute with them too.
                with torch.no_grad(), self.memory.using(*sources):
                    output = self.model(input_ids=tokens_1T, past_key_values=cache.states, use_cache=True)
                    if tokens_1T.shape[1] > 1:  # one token is multiplied without a copy of the rows
                        overwrite_products(self.release, blocks, tokens_1T.shape[1])
                cache.states, token = output.past_key_values, int(output.logits[0, -1].argmax())
                del output
                if token == self.end:
                    return
                yield token
                tokens_1T = torch.tensor([[token]])
        finally:
            cache.overwrite()


def _pieces(decoder: ContinuationDecoder, tokens: Iterator[int], vault: Vault, generation: int) -> Iterator[str]:
    for token in tokens:
        _check_generation(vault, generation)
        if piece := decoder.add(token):
            yield piece
            # The reader may have waited long: the next token must not be computed from erased rows.
            _check_generation(vault, generation)
    if rest := decoder.finish():
        yield rest


class AnswerCache:
    """The keys and values of the tokens of one answer, which depend on private rows."""

    def __init__(self) -> None:
        self.states: Any = None

    def overwrite(self) -> None:
        """Overwrite the keys and values with zeros, and drop them. Calling it twice is fine."""
        states, self.states = self.states, None
        for layer in getattr(states, "layers", ()):
            for values in (layer.keys, layer.values):
                if values is not None:
                    overwrite_tensor(values)


def overwrite_tensor(values: Tensor) -> None:
    """Overwrite the memory of a tensor and of all its views with zeros.

    On the CPU no thread of torch is used: in a forked child a call of torch could wait for ever.
    """
    storage = values.untyped_storage()
    if storage.device.type == "cpu":
        ctypes.memset(storage.data_ptr(), 0, storage.nbytes())
    else:
        values.zero_()


def _check_generation(vault: Vault, generation: int) -> None:
    """Raise UsageError if the vault was closed, Busy if something was erased since `generation`."""
    if vault.generation != generation:
        raise Busy("The vault changed while the answer was generated; ask again.")
