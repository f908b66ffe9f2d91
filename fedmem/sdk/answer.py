"""Answers inside the vault process: the anchor with the shared blocks of the path and the subject's own blocks.

Invariants
- Private rows are read from the vault for one answer, added while it is generated, and detached after it;
  they reach no file, no cache that outlives the answer and no other process.
- Between tokens the vault's generation is checked: an erasure ends an answer that still holds what it erased.
- Greedy: the same prompt, release and blocks give the same tokens.

    for piece in Answerer(release).answer("Which dose?", path, vault, blocks, limit=32):
        ...
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fedmem.anchor.tokenizer import end_of_document
from fedmem.errors import Busy, UsageError
from fedmem.memory.attach import attach
from fedmem.memory.kinds import Source
from fedmem.privacy.fetch import private_sources, shared_and_private
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault

UNFINISHED = "\ufffd"  # how the tokenizer shows a character whose last bytes are still to come


class Answerer:
    """A release's anchor with memory attached; made once, used for many answers."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.end = end_of_document(release.tokenizer)
        self.model = release.anchor().eval()
        self.memory = attach(self.model)

    def answer(
        self, prompt: str, path: Sequence[int], vault: Vault, blocks: Sequence[BlockInfo], limit: int
    ) -> Iterator[str]:
        """Pieces of the continuation of `prompt`, at most `limit` tokens. Raises Busy where the vault changed."""
        room = int(self.model.config.max_position_embeddings) - limit
        if limit < 1 or room < 2:
            raise UsageError("max_new_tokens must be at least 1 and leave room for the prompt in the anchor's context.")
        generation = vault.generation
        sources = self.sources(path, vault, blocks)
        ids = [self.end, *self.release.tokenizer.encode(prompt, add_special_tokens=False).ids[1 - room :]]
        found: list[int] = []
        text = ""
        for token in self.tokens(ids, sources, limit):
            if vault.generation != generation:
                raise Busy("The vault changed while the answer was generated; ask again.")
            found.append(token)
            now = self.release.tokenizer.decode(found)
            if not now.endswith(UNFINISHED):
                yield now[len(text) :]
                text = now

    def sources(self, path: Sequence[int], vault: Vault, blocks: Sequence[BlockInfo]) -> list[Source]:
        """The shared rows of the path, then the private rows of each block."""
        return shared_and_private(self.release, [path], private_sources(vault, self.release, blocks))

    def tokens(self, ids: Sequence[int], sources: Sequence[Source], limit: int) -> Iterator[int]:
        """Greedy continuation, until the document ends or `limit`. The memory is in use during a step only."""
        tokens_1T = torch.tensor([list(ids)])
        cache: Any = None
        for _ in range(limit):
            # A generator may be left suspended: nothing private stays attached between its steps.
            with torch.no_grad(), self.memory.using(*sources):
                out = self.model(input_ids=tokens_1T, past_key_values=cache, use_cache=True)
            cache, token = out.past_key_values, int(out.logits[0, -1].argmax())
            if token == self.end:
                return
            yield token
            tokens_1T = torch.tensor([[token]])
