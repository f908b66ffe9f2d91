"""Make a vault for one measurement in a temporary folder, and delete it afterwards.

Invariants
- Records, training, erasure and fetching use the ordinary code; nothing is implemented a second time here.
- The vault is marked as simulated. The vault and its key slots are deleted when the `with` ends. If the process is
  killed, ciphertext and slots stay until someone removes them.
- Training has no noise and uses every record at every step, so a block learns its records as well as it can. The block
  is a function of release, records and settings. Epsilon is infinite, so use this for invented text only.

    with throwaway_vault(release, embedder) as throwaway:
        throwaway.learn("forget", texts, Learning(steps=100, width=128, length=256))
        throwaway.erase("forget")
        throwaway.sources(["forget"])  # {"forget": []}
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
    """The training settings of a throwaway vault.

    Attributes:
        steps: number of steps.
        width: rows of the block in each layer.
        length: most tokens of a sequence.
        lr: constant learning rate of Adam.
    """

    steps: int
    width: int
    length: int
    lr: float = 2e-2

    def plan(self) -> PrivacyPlan:
        """Return a plan with every record at every step and no noise. The divisor does not matter with Adam."""
        return PrivacyPlan(1.0, self.steps, CLIP, 0.0, 1.0, DELTA, RECORD_CAP)

    def settings(self) -> LearnSettings:
        """Return width, length and optimiser as settings of the learner."""
        return LearnSettings(self.width, self.length, optimiser=Optimiser(lr=self.lr, final=1.0))


@dataclass
class ThrowawayVault:
    """An open temporary vault; `throwaway_vault` makes it.

    Attributes:
        vault: the open vault; `erase` replaces it by the vault opened again.
        release: the release of its blocks.
        embedder: that of the release.
    """

    vault: Vault
    release: Release
    embedder: Embedder

    def learn(
        self, topic: str, texts: Sequence[str], learning: Learning, progress: Callable[[int], None] | None = None
    ) -> None:
        """Add texts as private records of a topic and train its block.

        Args:
            topic: name of the topic.
            texts: one record each.
            learning: the training settings.
            progress: is called with the number of each step.

        Raises:
            FedmemError: vault or training failed, as `learn_topic` documents.
        """
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
        """Erase a topic, open the vault again, rescan it, and return True if the rescan was clean.

        Args:
            topic: name of the topic.

        Raises:
            FedmemError: the erasure failed, as `erasure.execute` documents.
        """
        plan = erasure.plan(self.vault, erasure.Scope.topic(topic))
        result = erasure.execute(self.vault, plan, plan.digest)
        self.vault.close()
        self.vault = Vault.open(self.vault.root, subject=SUBJECT)
        return erasure.verify(self.vault, result.id).is_clean

    def sources(self, topics: Sequence[str]) -> dict[str, list[ActiveMemory]]:
        """Return the private block of each topic as a list with one memory source; empty if there is no block.

        Args:
            topics: names of the topics.
        """
        blocks = {topic: block_for(self.vault, topic, self.release.digest) for topic in topics}
        return {topic: private_sources(self.vault, self.release, [b] if b else []) for topic, b in blocks.items()}


@contextlib.contextmanager
def throwaway_vault(release: Release, embedder: Embedder) -> Iterator[ThrowawayVault]:
    """Make a vault for the duration of the `with`.

    Args:
        release: the release of its blocks.
        embedder: that of the release.

    Raises:
        StorageError: the disk cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="fedmem-") as folder:
        vault = Vault.create(Path(folder) / "vault", subject=SUBJECT, keystore="keyfile", simulated=True)
        temporary = ThrowawayVault(vault, release, embedder)
        try:
            yield temporary
        finally:
            temporary.vault.close()
            _destroy_slots(vault.id)


def _destroy_slots(vault_id: str) -> None:
    folder = paths.slots_dir() / vault_id
    for slot in folder.iterdir():
        Files().destroy(slot)
    folder.rmdir()
