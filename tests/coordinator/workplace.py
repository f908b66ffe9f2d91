"""A tiny corpus, anchor and bank that the tests of the workshop share."""

import hashlib
import shutil
from pathlib import Path

from fedmem.training.corpus import Corpus
from fedmem.training.plans import AnchorPlan, BankPlan, TrainPlan
from fedmem.training.settings import Settings
from tests.routing.hashed import HashedEmbedder

PLACES = ("harbour", "mountain", "garden", "station", "library")
TEXTS = [f"the {PLACES[n % 5]} of town {n} has {n * 7 % 11} {PLACES[n % 5]} gates and {n % 3} bells" for n in range(60)]
CORPUS = Corpus.of(TEXTS)
EMBEDDER = HashedEmbedder(dim=32)
ANCHOR = AnchorPlan("nano", 300, 48, Settings(steps=12, batch=4, lr=3e-3), 7)
BANK = BankPlan("ffn", 3, (4, 2), "uniform", 7)
SETTINGS = Settings(steps=14, batch=4, lr=1e-3, memory_lr=1e-2)


def plan(mode: str, **changed: object) -> TrainPlan:
    """A training of the bank in this mode."""
    return TrainPlan(**{"mode": mode, "length": 48, "settings": SETTINGS, "seed": 3} | changed)


class Cut(Exception):
    """The power goes."""


def cut_at(at: int):
    """A progress callback that cuts the power at its `at`-th call."""
    calls = iter(range(1, 10**6))

    def progress(*_: object) -> None:
        if next(calls) == at:
            raise Cut

    return progress


def copy(source: Path, target: Path) -> Path:
    """A copy of a release that may be damaged; still named by its digest."""
    return Path(shutil.copytree(source, target / source.name))


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
