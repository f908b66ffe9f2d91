"""Look at a release: what its bank is, and whether its parts belong together.

Invariants
- Looking changes nothing and loads no weight of the anchor: its configuration gives its shape.
- What does not fit is a VerificationFailed that names the two parts, whatever was done to the files.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from fedmem.anchor.load import load_skeleton
from fedmem.errors import FedmemError, NothingMatched, Refused, VerificationFailed
from fedmem.memory.bank import Bank
from fedmem.memory.sites import shape_of, sites_of
from fedmem.memory.spec import MemorySpec
from fedmem.training.release import Release


def verify(folder: Path) -> Release:
    """A release whose files are those of its manifest, and whose anchor, tree, tokenizer and bank fit each other.

    Raises NothingMatched where there is none, Refused where its anchor names code to run, VerificationFailed for
    everything else that is wrong with one.
    """
    try:
        release = Release.load(folder.resolve())
        _check(release, skeleton(release))
    except (NothingMatched, Refused, VerificationFailed):
        raise
    except (FedmemError, KeyError, TypeError, ValueError, OSError) as error:
        raise VerificationFailed(f"The release in {folder} cannot be read whole; fetch or make it again.") from error
    return release


def skeleton(release: Release) -> PreTrainedModel:
    """The anchor without its weights."""
    return load_skeleton(release.root / "anchor")


def _check(release: Release, anchor: PreTrainedModel) -> None:
    spec, tree = release.spec, release.tree
    entries = max(release.tokenizer.get_vocab(with_added_tokens=True).values())
    faults = {
        "its bank has another geometry than its anchor": (spec.shape, spec.layers)
        != (shape_of(anchor), len(sites_of(anchor))),
        "its tree has another branching or depth than its bank": (tree.branching, tree.levels)
        != (spec.branching, spec.levels),
        "its tokenizer has more entries than its anchor": entries >= anchor.config.vocab_size,
        "its bank has other blocks than its manifest says": not _whole(release),
    }
    for fault, found in faults.items():
        if found:
            raise VerificationFailed(f"The release in {release.root} does not hold together: {fault}. Make it again.")


def _whole(release: Release) -> bool:
    """Whether every file of the bank has the shape that the spec gives it."""
    try:
        Bank.open(release.root / "bank", release.spec).close()
    except FedmemError:
        return False
    return True


@dataclass(frozen=True)
class LevelFacts:
    """One level of a bank: blocks, width by layer, values of one block and of all, bytes of all on disk."""

    level: int
    blocks: int
    widths: tuple[int, ...]
    block_values: int
    values: int
    bytes: int


@dataclass(frozen=True)
class BankFacts:
    """What `fedmem bank show` shows; `share` is the fetched values over the anchor's parameters."""

    release: str
    folder: str
    anchor: str
    anchor_parameters: int
    kind: str
    branching: int
    levels: tuple[LevelFacts, ...]
    values: int
    bytes: int
    fetched_values: int
    share: float


def describe(folder: Path) -> BankFacts:
    """The bank of a release, its files checked. Raises as `verify`."""
    release = verify(folder)
    spec, anchor = release.spec, skeleton(release)
    parameters = sum(parameter.numel() for parameter in anchor.parameters())
    levels = tuple(_level(spec, number) for number in range(1, spec.levels + 1))
    return BankFacts(
        release=release.digest,
        folder=str(folder),
        anchor=type(anchor).__name__,
        anchor_parameters=parameters,
        kind=spec.kind,
        branching=spec.branching,
        levels=levels,
        values=spec.bank_size,
        bytes=sum(path.stat().st_size for path in (release.root / "bank").iterdir()),
        fetched_values=spec.fetch_size,
        share=spec.fetch_size / parameters,
    )


def _level(spec: MemorySpec, level: int) -> LevelFacts:
    size, blocks = spec.block_size(level), spec.blocks(level)
    return LevelFacts(level, blocks, spec.widths[level - 1], size, blocks * size, 2 * blocks * size)
