"""A vault for one measurement: made in a temporary folder, filled, learned from, erased, and gone afterwards.

Invariants
- Records, training, erasure and fetching go the ordinary way; nothing here is a second one.
- The vault is marked as simulated, and neither it nor its key slots outlive the `with`, unless the process is
  killed: then ciphertext and slots stay until someone removes them.
- Training is without noise, on every record at every step: what is to be forgotten is learned as well as a block can,
  and a block is a function of release, records and settings. So it is for invented text only: epsilon is infinite.

    with throwaway(release, embedder) as held:
        held.learn("forget", texts, Learning(steps=100, width=128, length=256))
        held.erase("forget")
        held.sources(["forget"])  # {"forget": []}
"""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmem import erasure, paths
from fedmem.device.learning import LearnSettings, learn_topic
from fedmem.device.private_fetch import block_for, private_sources
from fedmem.memory.kinds import ActiveMemory
from fedmem.policy.files import Topic
from fedmem.privacy.dpsgd import Optimiser
from fedmem.privacy.plan import DELTA, PrivacyPlan
from fedmem.routing.embedder import Embedder
from fedmem.routing.router import route
from fedmem.storage.files import Files
from fedmem.training.release import Release
from fedmem.vault.vault import NewRecord, Vault

SUBJECT = "invented"
RECORD_CAP = 10_000
CLIP = 0.1


@dataclass(frozen=True)
class Learning:
    """Steps of training, width of a block, tokens of a sequence at most, and Adam's constant learning rate."""

    steps: int
    width: int
    length: int
    lr: float = 2e-2

    def plan(self) -> PrivacyPlan:
        """Every record at every step and no noise; Adam takes no notice of the divisor."""
        return PrivacyPlan(1.0, self.steps, CLIP, 0.0, 1.0, DELTA, RECORD_CAP)

    def settings(self) -> LearnSettings:
        """Width, length and optimiser as the learner takes them."""
        return LearnSettings(self.width, self.length, optimiser=Optimiser(lr=self.lr, final=1.0))


@dataclass
class Throwaway:
    """The open vault with the release that its blocks are for; made by `throwaway`."""

    vault: Vault
    release: Release
    embedder: Embedder

    def learn(
        self, topic: str, texts: Sequence[str], learning: Learning, progress: Callable[[int], None] | None = None
    ) -> None:
        """Add `texts` as private records of `topic` and train its block. Raises what `learn_topic` raises."""
        vectors_ND = self.embedder.embed(list(texts))
        paths_NP = route(self.release.tree, vectors_ND).tolist()
        self.vault.add_records(
            [
                NewRecord(text=text, topic=topic, path=tuple(path), vector=vector_D, release=self.release.digest)
                for text, path, vector_D in zip(texts, paths_NP, vectors_ND, strict=True)
            ]
        )
        learn_topic(
            self.vault,
            self.release,
            Topic(topic, math.inf, DELTA),
            learning.plan(),
            settings=learning.settings(),
            progress=(lambda step, _: progress(step)) if progress else None,
        )

    def erase(self, topic: str) -> bool:
        """Plan, execute, rescan; whether the rescan was clean. What is open afterwards was opened after the erasure."""
        planned = erasure.plan(self.vault, erasure.Scope.topic(topic))
        done = erasure.execute(self.vault, planned, planned.digest)
        self.vault.close()
        self.vault = Vault.open(self.vault.root, subject=SUBJECT)
        return erasure.verify(self.vault, done.id).clean

    def sources(self, topics: Sequence[str]) -> dict[str, list[ActiveMemory]]:
        """The private block of each topic as a memory source; an empty list where there is none."""
        blocks = {topic: block_for(self.vault, topic, self.release.digest) for topic in topics}
        return {topic: private_sources(self.vault, self.release, [b] if b else []) for topic, b in blocks.items()}


@contextlib.contextmanager
def throwaway(release: Release, embedder: Embedder) -> Iterator[Throwaway]:
    """A new vault for the `with`. Raises StorageError where there is no place for it."""
    with tempfile.TemporaryDirectory(prefix="fedmem-") as folder:
        vault = Vault.create(Path(folder) / "vault", subject=SUBJECT, keystore="keyfile", simulated=True)
        held = Throwaway(vault, release, embedder)
        try:
            yield held
        finally:
            held.vault.close()
            _destroy_slots(vault.id)


def _destroy_slots(vault_id: str) -> None:
    folder = paths.slots_dir() / vault_id
    for slot in folder.iterdir():
        Files().destroy(slot)
    folder.rmdir()
