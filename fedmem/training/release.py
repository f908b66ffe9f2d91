"""A release: anchor, tokenizer, tree, embedder and shared bank that belong together, named by their digest.

Invariants
- The digest covers every file, the embedder's digest and the shape of the bank; the folder is named by it.
- A release never changes: it is written to a temporary folder and renamed, and `load` checks every digest again.
- Nothing private is ever in it.

    release = Release.write(folder, model, tokenizer, tree, embedder_digest, spec, state)
    rows_L3RD = Release.load(folder / release.digest).bank.fetch(path)
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedmem.canonical import canonical_json, digest
from fedmem.errors import NothingMatched, VerificationFailed
from fedmem.memory.bank import Bank, write_bank
from fedmem.memory.spec import MemorySpec
from fedmem.routing.tree import Tree
from fedmem.training.loop import BankState

# Their bars for milliseconds of work would stand between ours.
transformers_logging.disable_progress_bar()

MANIFEST = "release.json"
FORMAT = 1


def _file_digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass(frozen=True)
class Release:
    """An opened release; its parts are loaded when they are asked for."""

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
        spec: MemorySpec,
        state: BankState,
    ) -> "Release":
        """Write a release into `parent`, in a folder named by its digest; writing the same one twice is harmless."""
        temporary = parent / ".writing"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary / "anchor")
        tokenizer.save(str(temporary / "tokenizer.json"))
        tree.save(temporary / "tree.safetensors")
        write_bank(temporary / "bank", state.levels, state.generic)
        manifest = {
            "format": FORMAT,
            "files": _file_digests(temporary),
            "embedder": embedder_digest,
            "memory": spec.to_dict(),
        }
        (temporary / MANIFEST).write_bytes(canonical_json(manifest))
        name = digest(manifest)
        if (parent / name).exists():
            shutil.rmtree(temporary)
        else:
            temporary.rename(parent / name)
        return cls(parent / name, name, manifest)

    @classmethod
    def load(cls, folder: Path) -> "Release":
        """Open a release and check every file. Raises NothingMatched or VerificationFailed."""
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise NothingMatched(
                f"{folder} holds no release; `fedmem sim run` makes one under its run folder."
            ) from None
        except ValueError:
            manifest = {}
        if digest(manifest) != folder.name or _file_digests(folder) != manifest["files"]:
            raise VerificationFailed(
                f"A file of the release in {folder} was changed or is missing; fetch the release again."
            )
        return cls(folder, folder.name, manifest)

    @property
    def spec(self) -> MemorySpec:
        """Shape of the shared bank."""
        return MemorySpec.from_dict(self.manifest["memory"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The anchor's tokenizer."""
        return Tokenizer.from_file(str(self.root / "tokenizer.json"))

    @cached_property
    def tree(self) -> Tree:
        """The cluster tree."""
        return Tree.load(self.root / "tree.safetensors")

    def anchor(self) -> PreTrainedModel:
        """A new, frozen copy of the anchor in evaluation mode."""
        model = AutoModelForCausalLM.from_pretrained(self.root / "anchor", local_files_only=True)
        return model.eval().requires_grad_(False)

    @cached_property
    def bank(self) -> Bank:
        """The open shared bank; close it when done."""
        return Bank.open(self.root / "bank", self.spec)

    def bank_state(self) -> BankState:
        """The whole bank in memory, float32, to train on from here."""
        levels = [self.bank.level(number) for number in range(1, self.spec.levels + 1)]
        return BankState(levels, self.bank.generic())
