"""What a block gives away of canaries planted among its records: before, after DP, after no DP, and after an erasure.

Sentences with a random code (`fedmem.eval.canaries`) are learned from a throwaway vault on a release with random
weights, once under the plan that is audited and once without noise. The second shows that the measure has power: a
block can hold such sentences, so what the first does not give away was protected.

Invariants
- Release, vaults and sentences are made here and gone afterwards; nothing of a user is read.
- After the erasure the vault is opened anew and fetched from in the ordinary way.

    found = leaks(plan)
    found["exposure"]["after_dp"]  # bits, of at most 6.64

| figure | of a canary |
|---|---|
| exposure | bits, 1.44 on average for a model that never saw it, log2 100 = 6.64 at most |
| extraction | share of the code that greedy decoding ends by itself, 0 to 1 |
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.device.learning import learn_topic
from fedmem.eval.canaries import MOST, Canary, exposure, plant
from fedmem.eval.reader import Private, Reader
from fedmem.eval.throwaway import Learning, Throwaway, throwaway
from fedmem.memory.sites import spec_for
from fedmem.policy.files import Topic
from fedmem.privacy.plan import PrivacyPlan
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release
from fedmem.vault.vault import NewRecord

TOPIC, DIGITS, SEED, VOCABULARY = "canaries", 2, 2305, 320
LEARNING = Learning(steps=80, width=32, length=32)


def leaks(plan: PrivacyPlan) -> dict[str, Any]:
    """`exposure` and `extraction` at each of `before`, `after_dp`, `after_non_dp`, `after_erasure`, and `verified`.

    `plan` is that of the private block; raises what vault and learner raise.
    """
    canaries, embedder = plant(MOST, DIGITS, SEED), StaticEmbedder()
    texts = [canary.text for canary in canaries]
    with _release(texts, embedder) as release:
        reader = Reader(release, embedder, LEARNING.length)
        found = {"before": _given_away(reader, canaries, ())}
        with throwaway(release, embedder) as held:
            found["after_dp"] = _given_away(reader, canaries, _learned(held, texts, plan))
        with throwaway(release, embedder) as held:
            found["after_non_dp"] = _given_away(reader, canaries, _learned(held, texts, LEARNING.plan()))
            verified = held.erase(TOPIC)
            found["after_erasure"] = _given_away(reader, canaries, held.sources([TOPIC])[TOPIC])
    figures = {
        name: {when: pair[i] for when, pair in found.items()} for i, name in enumerate(("exposure", "extraction"))
    }
    return {**figures, "verified": verified}


def _learned(held: Throwaway, texts: Sequence[str], plan: PrivacyPlan) -> Private:
    """The block of a vault that learned `texts` under `plan`."""
    vectors_ND, path = held.embedder.embed(list(texts)), (0,)  # the tree's only leaf
    held.vault.add_records(
        [
            NewRecord(text, TOPIC, path, vector_D, held.release.digest)
            for text, vector_D in zip(texts, vectors_ND, strict=True)
        ]
    )
    learn_topic(held.vault, held.release, Topic(TOPIC, math.inf, plan.delta), plan, settings=LEARNING.settings())
    return held.sources([TOPIC])[TOPIC]


def _given_away(reader: Reader, canaries: Sequence[Canary], private: Private) -> tuple[float, float]:
    """Mean exposure in bits, and mean extraction strength of the codes."""
    bits = [exposure(reader.candidate_losses(c.prefix, c.candidates, private), c.secret) for c in canaries]
    ends = [canary.candidates[canary.secret] for canary in canaries]
    return float(np.mean(bits)), float(reader.strength([c.prefix for c in canaries], ends, private).mean())


@contextmanager
def _release(texts: Sequence[str], embedder: StaticEmbedder) -> Iterator[Release]:
    """A release with random weights and a tree of one cluster, gone afterwards."""
    tokenizer, model = train_tokenizer(texts, VOCABULARY), new_anchor("nano", VOCABULARY, SEED)
    bank = BankState.new(spec_for(model, "ffn", 1, (1,)), seed=SEED).stream()
    tree = Tree(1, 1, (embedder.embed(texts[:1]),))
    with tempfile.TemporaryDirectory(prefix="fedmem-") as folder:
        yield Release.write(Path(folder), model, tokenizer, tree, embedder.digest, bank)
