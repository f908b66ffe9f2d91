"""Answers inside the vault process: the anchor with the shared blocks of the path and the subject's own blocks.

Invariants
- Private rows are read from the vault for one answer, added while it is generated, and detached after it;
  they reach no file, no cache that outlives the answer and no other process.
- Before each piece the vault is checked: once it is closed, or something was erased, by whichever thread or process,
  the answer ends with an error.
- Threads may answer at once, and a stream may be read by another thread than the one that asked.
- Greedy: the same prompt, release and blocks give the same tokens.

    for piece in Answerer(release).answer("Which dose?", path, vault, blocks, limit=32):
        ...
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fedmem.anchor.tokenizer import end_of_document
from fedmem.device.private_fetch import private_sources, shared_and_private
from fedmem.errors import Busy, UsageError
from fedmem.memory.attach import attach
from fedmem.memory.kinds import ActiveMemory
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
        """Bind an answer to the blocks as they are now, and return its pieces as they are generated.

        Args:
            prompt: what is continued; the end of it where it is too long for the anchor's context.
            path: the prompt's path in the release's tree, one block number for each level.
            vault: where `blocks` are read from.
            blocks: private blocks in use, in this order.
            limit: the most tokens of the answer, at least 1.

        Raises:
            UsageError: the limit leaves no room for the prompt; from a piece, where the vault was closed.
            Busy: from a piece, where something was erased since the answer was bound.
        """
        room = int(self.model.config.max_position_embeddings) - limit
        if limit < 1 or room < 2:
            raise UsageError("max_new_tokens must be at least 1 and leave room for the prompt in the anchor's context.")
        generation = vault.generation
        sources = self.sources(path, vault, blocks)
        ids = [self.end, *self.release.tokenizer.encode(prompt, add_special_tokens=False).ids[1 - room :]]
        return self._pieces(self.tokens(ids, sources, limit), vault, generation)

    def _pieces(self, tokens: Iterator[int], vault: Vault, generation: int) -> Iterator[str]:
        ids: list[int] = []
        text = ""
        for token in tokens:
            _check(vault, generation)
            ids.append(token)
            now = self.release.tokenizer.decode(ids)
            if not now.endswith(UNFINISHED):
                yield now[len(text) :]
                _check(vault, generation)  # Long after, perhaps: the next token must not be computed from erased rows.
                text = now

    def sources(self, path: Sequence[int], vault: Vault, blocks: Sequence[BlockInfo]) -> list[ActiveMemory]:
        """The shared rows of the path, then the private rows of each block."""
        return shared_and_private(self.release, [path], private_sources(vault, self.release, blocks))

    def tokens(self, ids: Sequence[int], sources: Sequence[ActiveMemory], limit: int) -> Iterator[int]:
        """Greedy continuation, until the document ends or `limit`. The memory is in use during a step only."""
        tokens_1T = torch.tensor([list(ids)])
        cache: Any = None
        for _ in range(limit):
            # Never across a yield: what is in use there is in use for whoever reads the generator.
            with torch.no_grad(), self.memory.using(*sources):
                out = self.model(input_ids=tokens_1T, past_key_values=cache, use_cache=True)
            cache, token = out.past_key_values, int(out.logits[0, -1].argmax())
            if token == self.end:
                return
            yield token
            tokens_1T = torch.tensor([[token]])


def _check(vault: Vault, generation: int) -> None:
    """Raise UsageError where the vault was closed, Busy where it is of another generation."""
    if vault.generation != generation:
        raise Busy("The vault changed while the answer was generated; ask again.")
