"""Write and open releases: anchor, tokenizer, tree, embedder and shared bank that belong together.

Invariants
- The digest of a release covers every file, the digest of the embedder and the shape of the bank. It is the name of
  the folder.
- A release never changes. It is written to a temporary folder, which is then renamed. `load` checks every digest.
- A release holds nothing private.

    release = Release.write(folder, model, tokenizer, tree, embedder_digest, bank)
    fetched_X = Release.load(folder / release.digest).bank.fetch(path)
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedmem.anchor.load import check_weights, load_model
from fedmem.anchor.tokenizer import load_tokenizer
from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.memory.bank import Bank, write_bank
from fedmem.memory.spec import MemorySpec
from fedmem.routing.embedder import Embedder
from fedmem.routing.embedders import open_embedder
from fedmem.routing.tree import Tree
from fedmem.storage.canonical import canonical_json, digest
from fedmem.storage.files import Files, storage_errors
from fedmem.training.bank_state import BankState, BankStream, spans

# The progress bars of transformers, for milliseconds of work, would break up ours.
transformers_logging.disable_progress_bar()

MANIFEST = "release.json"
FORMAT = 1
_FIELDS = {"files": dict, "embedder": str, "memory": dict}


def _read_manifest(root: Path) -> dict[str, Any]:
    """Return the manifest of a release whose digest is the name of its folder. Raises as `Release.load`."""
    if not (root / MANIFEST).is_file():
        raise NothingMatched(f"{root} holds no release; `fedmem sim run` makes one under its run folder.")
    try:
        with storage_errors(f"read {root / MANIFEST}"):
            manifest = json.loads((root / MANIFEST).read_bytes())
        is_named = digest(manifest) == root.name
    except (ValueError, TypeError, RecursionError):
        is_named = False
    if not is_named:
        raise VerificationFailed(
            f"{root / MANIFEST} was changed, or its folder renamed: the folder's name is the digest of the manifest. "
            "Fetch the release again."
        )
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise VersionMismatch(f"The release in {root} has another format; use the fedmem that made it.")
    if {name: type(manifest.get(name)) for name in _FIELDS} != _FIELDS:
        raise VerificationFailed(f"{root / MANIFEST} is no manifest of a release; fetch the release again.")
    return manifest


def _check_files(root: Path, digests: Mapping[str, str]) -> None:
    """Raise VerificationFailed, with the name of the file, if the files of a release are not those of its manifest."""
    names = _file_names(root)
    for name in sorted(names ^ digests.keys()):
        if name in names:
            raise VerificationFailed(f"{root / name} does not belong to the release; move it to another folder.")
        raise VerificationFailed(f"{root / name} is missing; fetch the release again.")
    for name, sha256 in digests.items():
        if _sha256(root / name) != sha256:
            raise VerificationFailed(f"{root / name} was changed; fetch the release again.")


def _file_names(folder: Path) -> set[str]:
    """Return the files below a folder, without the manifest."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {str(path.relative_to(folder)) for path in paths}


def _file_digests(folder: Path) -> dict[str, str]:
    return {name: _sha256(folder / name) for name in sorted(_file_names(folder))}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _anchor_digest(files: Mapping[str, str]) -> str:
    """Return the digest of the anchor that a bank belongs to, from the file digests of a manifest."""
    return digest({name: sha256 for name, sha256 in files.items() if name.startswith("anchor/")})


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Turn a disk failure into a StorageError, also one that safetensors reports by its own error class."""
    with storage_errors("write the release"):
        try:
            yield
        except SafetensorError as error:
            raise OSError(errno.EIO, "the disk refused a file") from error


def _sync(folder: Path) -> None:
    files = Files()
    for path in folder.rglob("*"):
        files.sync_folder(path) if path.is_dir() else files.sync_file(path)
    files.sync_folder(folder)


@dataclass(frozen=True)
class Release:
    """An opened release. Its parts are loaded at first use.

    Attributes:
        root: folder of the release.
        digest: digest of the manifest, which names the folder.
        manifest: format, file digests, digest of the embedder, and shape of the bank.
    """

    root: Path
    digest: str
    manifest: dict[str, Any]

    @classmethod
    def write(
        cls,
        parent: Path,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        tree: Tree,
        embedder_digest: str,
        bank: BankStream,
    ) -> "Release":
        """Write a release into a folder below `parent`, named by its digest. Writing it again gives the same folder.

        Args:
            parent: folder of all releases.
            model: the anchor.
            tokenizer: the anchor's tokenizer.
            tree: the cluster tree.
            embedder_digest: digest of the embedder that the tree was trained with.
            bank: all blocks of the shared bank.

        Returns:
            The new release, opened.

        Raises:
            StorageError: the disk refuses; no incomplete release is left.
            VerificationFailed: a weight is not finite, or the output layer is not tied as the configuration says.
                Nothing is written.
        """
        check_weights(model, "the anchor")
        temporary = parent / ".writing"
        with _storage_errors():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            model.save_pretrained(temporary / "anchor")
            tokenizer.save(str(temporary / "tokenizer.json"))
            tree.save(temporary / "tree.safetensors")
            anchor = _anchor_digest(_file_digests(temporary))
            levels = (bank.pieces(level) for level in range(1, bank.spec.levels + 1))
            write_bank(temporary / "bank", bank.spec, levels, bank.generic, anchor)
            manifest = {
                "format": FORMAT,
                "files": _file_digests(temporary),
                "embedder": embedder_digest,
                "memory": bank.spec.to_dict(),
            }
            (temporary / MANIFEST).write_bytes(canonical_json(manifest))
            _sync(temporary)
            final = parent / digest(manifest)
            shutil.rmtree(final, ignore_errors=True)  # equal, or incomplete after a crash
            Files().rename_folder(temporary, final)
        return cls(final, final.name, manifest)

    @classmethod
    def load(cls, folder: Path) -> "Release":
        """Open a release and check every file.

        Args:
            folder: folder of the release, or a link to it; the name of the folder itself is the digest.

        Raises:
            NothingMatched: the folder holds no release.
            VerificationFailed: a file was changed or is missing, or does not belong to the release.
            VersionMismatch: the release has another format.
            StorageError: a file cannot be read.
        """
        root = folder.resolve()
        manifest = _read_manifest(root)
        with storage_errors(f"read the release in {root}"):
            _check_files(root, manifest["files"])
        return cls(root, root.name, manifest)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder that the tree was trained with. Raises as `open_embedder`."""
        return open_embedder(self.manifest["embedder"])

    def check_embedder(self, embedder_digest: str) -> "Release":
        """Return this release, if its tree was trained with an embedder.

        Args:
            embedder_digest: digest of the embedder, SHA-256 in hex.

        Raises:
            VersionMismatch: the tree was trained with another embedder.
        """
        if self.manifest["embedder"] != embedder_digest:
            raise VersionMismatch(f"Release {self.digest[:12]} was made with another embedder; fetch a newer release.")
        return self

    @property
    def spec(self) -> MemorySpec:
        """The shape of the shared bank."""
        return MemorySpec.from_dict(self.manifest["memory"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The anchor's tokenizer."""
        return load_tokenizer(self.root / "tokenizer.json")

    @cached_property
    def tree(self) -> Tree:
        """The cluster tree."""
        return Tree.load(self.root / "tree.safetensors")

    def anchor(self) -> PreTrainedModel:
        """Load a new, frozen copy of the anchor in evaluation mode.

        Raises:
            Refused: its configuration names code to run.
            VerificationFailed: it cannot be read.
        """
        return load_model(self.root / "anchor").eval().requires_grad_(False)

    @cached_property
    def bank(self) -> Bank:
        """The shared bank, opened at first use; the caller closes it."""
        return Bank.open(self.root / "bank", self.spec, _anchor_digest(self.manifest["files"]))

    def bank_stream(self) -> BankStream:
        """Return all blocks of the bank as a stream, float32; they are read from disk piece by piece."""

        def pieces(level: int) -> Iterator[Tensor]:
            for first, last in spans(self.spec.blocks(level), self.spec.block_size(level)):
                yield self.bank.blocks(level, first, last)

        return BankStream(self.spec, pieces, self.bank.generic())

    def bank_state(self) -> BankState:
        """Return a copy of the whole bank in memory, float32, for training."""
        return BankState.of(self.bank_stream())
