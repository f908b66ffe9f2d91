"""Query a release: its anchor with the shared blocks of each prompt and with private blocks.

Invariants
- Memory is fetched by the prompt only, never by the text that follows it.
- Texts are cut to the reader's length: a prompt to half of it, the end to the rest.
- `logits_digest` covers every bit of every logit, so equal digests mean equal logits, to the last bit.

    reader = Reader(release, embedder, length=256)
    losses_N, counts_N = reader.losses(["Who wrote it?"], ["Nobody."], private)

Shapes: N texts, B of a batch, P levels, T tokens.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from fedmem.anchor.decoding import decode_continuation
from fedmem.anchor.tokenizer import PAD, end_of_document, start_of_document, text_ids
from fedmem.device.private_fetch import shared_and_private
from fedmem.eval.buckets import Losses
from fedmem.eval.extraction import extraction_strength, generate_continuations
from fedmem.eval.perplexity import SourcesOf
from fedmem.eval.targets import Targets, join_targets, target_losses
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source
from fedmem.memory.kinds import ActiveMemory
from fedmem.routing.embedder import Embedder
from fedmem.routing.router import route
from fedmem.training.release import Release
from fedmem.training.sequences import readable, trim

Private = Sequence[ActiveMemory]
BATCH = 32


class Reader:
    """A reader of a release: its model, queried as by an attacker or a user.

    Each method takes `private`, the private blocks in use beside the shared ones.

    Args:
        release: anchor, tokenizer, tree and bank.
        embedder: that of the release.
        length: the longest text in tokens; at most the anchor's context is used.
    """

    def __init__(self, release: Release, embedder: Embedder, length: int) -> None:
        self._release, self._embedder = release, embedder
        self._model = release.anchor()
        self._memory = attach(self._model)
        self._start, self._end = start_of_document(release.tokenizer), end_of_document(release.tokenizer)
        self.length = min(length, int(self._model.config.max_position_embeddings))

    def losses(self, prompts: Sequence[str], ends: Sequence[str], private: Private) -> Losses:
        """Return the summed loss in nats and the number of tokens of each end after its prompt, `[N]` each.

        Args:
            prompts: N prompts; memory is fetched by them.
            ends: the text after each prompt.
            private: the private blocks in use.
        """
        return target_losses(self._model, self._joined(prompts, ends), self._memory, self._sources(prompts, private))

    def candidate_losses(self, prompt: str, ends: Sequence[str], private: Private) -> np.ndarray:
        """Return the summed losses in nats of many ends after one prompt, `[N]`. Memory is fetched once.

        Args:
            prompt: the prompt; memory is fetched by it.
            ends: N texts, each measured after the prompt.
            private: the private blocks in use.
        """
        (path,) = route(self._release.tree, self._embedder.embed([prompt]))
        sources = [make_shared_source(self._release.spec, self._release.bank.fetch_many([path])[0]), *private]
        targets = self._joined([prompt] * len(ends), ends)
        return target_losses(self._model, targets, self._memory, lambda _: sources)[0]

    def text_losses(self, texts: Sequence[str], private: Private) -> Losses:
        """Return what `losses` does, for whole texts without a prompt. Memory is fetched by the text.

        Args:
            texts: N texts; memory is fetched by them.
            private: the private blocks in use.
        """
        targets = join_targets([[self._start]] * len(texts), self._text_ids(texts))
        return target_losses(self._model, targets, self._memory, self._sources(texts, private))

    def extraction_strength(self, prompts: Sequence[str], ends: Sequence[str], private: Private) -> np.ndarray:
        """Return the extraction strength of each end after its prompt, `[N]`, 0 to 1.

        Args:
            prompts: N prompts; memory is fetched by them.
            ends: the text after each prompt.
            private: the private blocks in use.
        """
        targets = self._joined(prompts, ends)
        return extraction_strength(self._model, targets, self._memory, self._sources(prompts, private))

    def continue_prompts(self, prompts: Sequence[str], ends: Sequence[str], private: Private) -> list[str]:
        """Return the greedy continuation of each prompt, with at most as many tokens as its end in `ends`.

        Args:
            prompts: the prompts; memory is fetched by them.
            ends: the true text after each prompt; only its length counts.
            private: the private blocks in use.
        """
        return self._continued(self._contexts(prompts), self._targets(ends), self._sources(prompts, private))

    def complete_halves(self, texts: Sequence[str], private: Private) -> tuple[list[str], list[str]]:
        """Continue the first half of each text, by tokens.

        Args:
            texts: the texts; memory is fetched by their first halves.
            private: the private blocks in use.

        Returns:
            The greedy continuation of each first half, and the true second half.
        """
        decode, rows = self._release.tokenizer.decode, self._text_ids(texts)
        # The halves are not encoded again, since the model must get the tokens that it learned.
        starts, ends = [ids[: len(ids) // 2] for ids in rows], [ids[len(ids) // 2 :] for ids in rows]
        sources = self._sources([decode(ids) for ids in starts], private)
        completions = self._continued([[self._start, *ids] for ids in starts], ends, sources)
        return completions, [self._decoded(start, end) for start, end in zip(starts, ends, strict=True)]

    @torch.no_grad()
    def logits_digest(self, texts: Sequence[str], private: Private) -> str:
        """Return the SHA-256 over the logits of the texts in their order, in hex.

        Args:
            texts: the texts; memory is fetched by them.
            private: the private blocks in use.
        """
        digest, sources = hashlib.sha256(), self._sources(texts, private)
        tokens_NT = join_targets([[self._start]] * len(texts), self._text_ids(texts)).tokens_NT
        for start in range(0, len(texts), BATCH):
            numbers_B = np.arange(start, min(start + BATCH, len(texts)))
            tokens_BT = trim(tokens_NT[numbers_B])
            with self._memory.using(*sources(numbers_B)):
                logits_BTV = self._model(readable(tokens_BT)).logits
            digest.update(logits_BTV[tokens_BT != PAD].float().numpy().tobytes())
        return digest.hexdigest()

    def _continued(self, contexts: list[list[int]], ends: list[list[int]], sources: SourcesOf) -> list[str]:
        lengths = [len(ids) for ids in ends]
        rows = generate_continuations(self._model, contexts, lengths, self._end, self._memory, sources)
        return [self._decoded(context, ids) for context, ids in zip(contexts, rows, strict=True)]

    def _decoded(self, context: list[int], ids: list[int]) -> str:
        return decode_continuation(self._release.tokenizer, context, ids)

    def _sources(self, prompts: Sequence[str], private: Private) -> SourcesOf:
        paths_NP = route(self._release.tree, self._embedder.embed(list(prompts)))
        return lambda numbers_B: shared_and_private(self._release, paths_NP[numbers_B], private)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return text_ids(self._release.tokenizer, texts)

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids[: self.length - 1] for ids in self._ids(texts)]

    def _contexts(self, prompts: Sequence[str]) -> list[list[int]]:
        return [[self._start, *ids[: self.length // 2 - 1]] for ids in self._ids(prompts)]

    def _targets(self, ends: Sequence[str]) -> list[list[int]]:
        return [ids[: self.length - self.length // 2] for ids in self._ids(ends)]

    def _joined(self, prompts: Sequence[str], ends: Sequence[str]) -> Targets:
        return join_targets(self._contexts(prompts), self._targets(ends))
