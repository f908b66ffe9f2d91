"""Describe the bank of a release, and check that the parts of a release fit together.

Invariants
- A check changes nothing. It loads no weight of the anchor: the configuration gives the shape.
- Two parts that do not fit give a VerificationFailed that names both, however the files were changed.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from fedmem.anchor.load import load_skeleton
from fedmem.errors import FedmemError, NothingMatched, Refused, VerificationFailed
from fedmem.memory.bank import Bank
from fedmem.memory.sites import shape_of, sites_of
from fedmem.memory.spec import MemorySpec
from fedmem.routing.embedders import embedder_name
from fedmem.training.release import Release


def verify_release(folder: Path) -> Release:
    """Open a release; check its files against its manifest, and anchor, tree, tokenizer and bank against each other.

    Args:
        folder: the folder of the release.

    Returns:
        The opened release.

    Raises:
        NothingMatched: the folder holds no release.
        Refused: the configuration of the anchor names code to run.
        VerificationFailed: any other fault.
    """
    try:
        release = Release.load(folder.resolve())
        _check_parts(release, load_anchor_shape(release))
    except (NothingMatched, Refused, VerificationFailed):
        raise
    except (FedmemError, KeyError, TypeError, ValueError, OSError) as error:
        raise VerificationFailed(f"The release in {folder} cannot be read whole; fetch or make it again.") from error
    return release


def load_anchor_shape(release: Release) -> PreTrainedModel:
    """Return the anchor of a release without its weights.

    Args:
        release: the opened release; only the anchor's configuration is read.
    """
    return load_skeleton(release.root / "anchor")


def _check_parts(release: Release, anchor: PreTrainedModel) -> None:
    spec, tree = release.spec, release.tree
    entries = max(release.tokenizer.get_vocab(with_added_tokens=True).values())
    faults = {
        "its bank has another geometry than its anchor": (spec.shape, spec.layers)
        != (shape_of(anchor), len(sites_of(anchor))),
        "its tree has another branching or depth than its bank": (tree.branching, tree.levels)
        != (spec.branching, spec.levels),
        "its tokenizer has more entries than its anchor": entries >= anchor.config.vocab_size,
        "its bank has other blocks than its manifest says": not _bank_has_all_blocks(release),
    }
    for fault, is_present in faults.items():
        if is_present:
            raise VerificationFailed(f"The release in {release.root} does not hold together: {fault}. Make it again.")


def _bank_has_all_blocks(release: Release) -> bool:
    """Return True if every file of the bank has the shape that the spec gives it."""
    try:
        Bank.open(release.root / "bank", release.spec).close()
    except FedmemError:
        return False
    return True


@dataclass(frozen=True)
class LevelFacts:
    """The size of one level of a bank.

    Attributes:
        level: number of the level, from 1.
        blocks: number of blocks.
        widths: width of a block in each layer, in rows.
        block_values: number of values of one block.
        values: number of values of all blocks.
        bytes: bytes of all blocks on disk.
    """

    level: int
    blocks: int
    widths: tuple[int, ...]
    block_values: int
    values: int
    bytes: int


@dataclass(frozen=True)
class BankFacts:
    """The facts that `fedmem bank show` prints.

    Attributes:
        release: digest of the release.
        folder: folder of the release.
        anchor: class name of the anchor.
        anchor_parameters: number of the anchor's parameters.
        kind: kind of memory.
        branching: number of children of a node of the tree.
        levels: size of each level, from level 1.
        values: number of values of all blocks.
        bytes: bytes of all files of the bank.
        fetched_values: number of values of one fetch.
        share: `fetched_values` divided by `anchor_parameters`.
    """

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
    embedder: str


def describe_bank(folder: Path) -> BankFacts:
    """Return the facts of the bank of a release, after its files are checked.

    Args:
        folder: the folder of the release.

    Raises:
        NothingMatched, Refused, VerificationFailed: as `verify_release`.
    """
    release = verify_release(folder)
    spec, anchor = release.spec, load_anchor_shape(release)
    parameters = sum(parameter.numel() for parameter in anchor.parameters())
    levels = tuple(_level_facts(spec, number) for number in range(1, spec.levels + 1))
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
        embedder=embedder_name(release.manifest["embedder"]),
    )


def _level_facts(spec: MemorySpec, level: int) -> LevelFacts:
    size, blocks = spec.block_size(level), spec.blocks(level)
    return LevelFacts(level, blocks, spec.widths[level - 1], size, blocks * size, 2 * blocks * size)
