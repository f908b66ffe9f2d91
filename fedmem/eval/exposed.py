"""Measure how much a block reveals of canaries in its records: before training, with and without DP, and after erasure.

Two blocks learn sentences with a random code (`fedmem.eval.canaries`) from throwaway vaults, on a release with random
weights. One is trained under the audited plan, the other without noise. The second shows that the measure has power:
a block can memorise such sentences. So the plan protected what the first block does not reveal.

Invariants
- Release, vaults and sentences are made here and deleted afterwards. No data of a user is read.
- After the erasure the vault is opened again, and blocks are fetched in the ordinary way.

    figures = measure_exposure(plan)
    figures["exposure"]["after_dp"]  # bits, of at most 6.64

| figure | of a canary |
|---|---|
| exposure | bits, 1.44 on average for a model that never saw it, log2 100 = 6.64 at most |
| extraction | share of the code that greedy decoding completes correctly, 0 to 1 |
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
from fedmem.eval.throwaway import Learning, ThrowawayVault, throwaway_vault
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


def measure_exposure(plan: PrivacyPlan) -> dict[str, Any]:
    """Measure what the canaries' blocks reveal.

    Args:
        plan: the privacy plan of the first block.

    Returns:
        `exposure` and `extraction`, each at `before`, `after_dp`, `after_non_dp` and `after_erasure`; and `verified`,
        True if the rescan after the erasure was clean.

    Raises:
        FedmemError: vault or training failed.
    """
    canaries, embedder = plant(MOST, DIGITS, SEED), StaticEmbedder()
    texts = [canary.text for canary in canaries]
    with _release(texts, embedder) as release:
        reader = Reader(release, embedder, LEARNING.length)
        pairs = {"before": _revealed(reader, canaries, ())}
        with throwaway_vault(release, embedder) as throwaway:
            pairs["after_dp"] = _revealed(reader, canaries, _train(throwaway, texts, plan))
        with throwaway_vault(release, embedder) as throwaway:
            pairs["after_non_dp"] = _revealed(reader, canaries, _train(throwaway, texts, LEARNING.plan()))
            verified = throwaway.erase(TOPIC)
            pairs["after_erasure"] = _revealed(reader, canaries, throwaway.sources([TOPIC])[TOPIC])
    figures = {
        name: {when: pair[i] for when, pair in pairs.items()} for i, name in enumerate(("exposure", "extraction"))
    }
    return {**figures, "verified": verified}


def _train(throwaway: ThrowawayVault, texts: Sequence[str], plan: PrivacyPlan) -> Private:
    """Add `texts` to the vault, train a block under `plan`, and return its sources."""
    vectors_ND, path = throwaway.embedder.embed(list(texts)), (0,)  # the tree's only leaf
    throwaway.vault.add_records(
        [
            NewRecord(text, TOPIC, path, vector_D, throwaway.release.digest)
            for text, vector_D in zip(texts, vectors_ND, strict=True)
        ]
    )
    topic = Topic(TOPIC, math.inf, plan.delta)
    learn_topic(throwaway.vault, throwaway.release, topic, plan, settings=LEARNING.settings())
    return throwaway.sources([TOPIC])[TOPIC]


def _revealed(reader: Reader, canaries: Sequence[Canary], private: Private) -> tuple[float, float]:
    """Return the mean exposure in bits, and the mean extraction strength of the codes."""
    bits = [exposure(reader.candidate_losses(c.prefix, c.candidates, private), c.secret) for c in canaries]
    ends = [canary.candidates[canary.secret] for canary in canaries]
    return float(np.mean(bits)), float(reader.extraction_strength([c.prefix for c in canaries], ends, private).mean())


@contextmanager
def _release(texts: Sequence[str], embedder: StaticEmbedder) -> Iterator[Release]:
    """Make a release with random weights and a tree of one cluster, for the duration of the `with`."""
    tokenizer, model = train_tokenizer(texts, VOCABULARY), new_anchor("nano", VOCABULARY, SEED)
    bank = BankState.new(spec_for(model, "ffn", 1, (1,)), seed=SEED).stream()
    tree = Tree(1, 1, (embedder.embed(texts[:1]),))
    with tempfile.TemporaryDirectory(prefix="fedmem-") as folder:
        yield Release.write(Path(folder), model, tokenizer, tree, embedder.digest, bank)
