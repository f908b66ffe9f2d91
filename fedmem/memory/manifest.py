"""Read and write the manifest of a bank: its spec, the digests of its files, and the digest of its anchor.

Invariants
- A file's name contains the file's digest, and one rename replaces the manifest. So a crash leaves the old bank or
  the new one.
- File names are computed from the manifest and are not read from it, so no name can point outside the folder.

    manifest = BankManifest.read(folder)
    names = manifest.files()
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.memory.spec import MemorySpec
from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import Files, storage_errors

MANIFEST = "bank.json"
TEMPORARY = "bank.tmp"
FORMAT = 1
_BANK_FILE = re.compile(r"(level-\d+(-\d+-of-\d+)?|generic)-[0-9a-f]{16}\.safetensors|bank\.tmp")


class Shard(NamedTuple):
    """A file of a level: its number of blocks, and its SHA-256 in hex."""

    blocks: int
    sha256: str


@dataclass(frozen=True)
class BankManifest:
    """The content of `bank.json`; `levels[l]` are the files of level l + 1, in the order of their blocks."""

    spec: MemorySpec
    levels: tuple[tuple[Shard, ...], ...]
    generic: str
    anchor: str | None

    def names(self, level: int) -> list[str]:
        """Return the file names of a level, in the order of their blocks.

        Args:
            level: counted from 1.
        """
        shards = self.levels[level - 1]
        return [level_file(level, number, len(shards), s.sha256) for number, s in enumerate(shards, start=1)]

    @property
    def generic_name(self) -> str:
        """The file name of the generic block."""
        return generic_file(self.generic)

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the SHA-256 of every file."""
        for level, shards in enumerate(self.levels, start=1):
            yield from zip(self.names(level), (shard.sha256 for shard in shards), strict=True)
        yield self.generic_name, self.generic

    @classmethod
    def read(cls, folder: Path) -> "BankManifest":
        """Return the manifest of the bank in `folder`.

        Args:
            folder: folder of the bank.

        Raises:
            NothingMatched: the folder holds no bank.
            VersionMismatch: the bank has another format.
            VerificationFailed: the manifest was changed.
            StorageError: the disk cannot be read.
        """
        try:
            data = json.loads(_read(folder / MANIFEST))
            if data["format"] != FORMAT:
                raise VersionMismatch(f"The bank in {folder.name} has another format; update fedmem.")
            return cls._from_dict(data)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise VerificationFailed(
                f"{MANIFEST} in {folder.name} was changed; fetch or build the bank again."
            ) from None

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> "BankManifest":
        levels = tuple(tuple(Shard(int(n), _sha256(sha)) for n, sha in shards) for shards in data["levels"])
        spec = MemorySpec.from_dict(data["memory"])
        block_counts = [sum(shard.blocks for shard in shards) for shards in levels]
        if block_counts != [spec.blocks(level) for level in range(1, spec.levels + 1)]:
            raise ValueError("the files hold another number of blocks")
        return cls(spec, levels, _sha256(data["generic"]), data["anchor"])

    def write(self, folder: Path) -> None:
        """Write this manifest into `folder`, and fsync it. The files that it names must exist.

        Args:
            folder: folder of the bank; its manifest is replaced.

        Raises:
            StorageError: the disk cannot be written.
        """
        data = {
            "format": FORMAT,
            "memory": self.spec.to_dict(),
            "levels": [[list(shard) for shard in shards] for shards in self.levels],
            "generic": self.generic,
            "anchor": self.anchor,
        }
        files = Files()
        files.write_pieces(folder / TEMPORARY, [canonical_json(data)])
        files.sync_folder(folder)  # the files that it names must have their names first
        files.rename(folder / TEMPORARY, folder / MANIFEST)
        files.sync_folder(folder)


def _read(path: Path) -> bytes:
    with storage_errors(f"read {path.name}"):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NothingMatched(f"{path.parent.name} holds no bank; fetch or build one.") from None


def level_file(level: int, number: int, shards: int, sha256: str) -> str:
    """Return the file name of a shard of a level.

    Args:
        level: counted from 1.
        number: number of the shard, from 1.
        shards: number of shards of the level.
        sha256: digest of the file, in hex.
    """
    part = f"-{number}-of-{shards}" if shards > 1 else ""
    return f"level-{level}{part}-{sha256[:16]}.safetensors"


def generic_file(sha256: str) -> str:
    """Return the file name of the generic block.

    Args:
        sha256: digest of the file, in hex.
    """
    return f"generic-{sha256[:16]}.safetensors"


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("not a SHA-256 in hex")
    return text


def sweep(folder: Path) -> None:
    """Remove the bank files in `folder` that its manifest does not name.

    Nothing is removed if the manifest cannot be read. Without a manifest, every bank file is removed.

    Args:
        folder: folder of a bank, or one that never held a bank. Other files stay.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        kept_names = {name for name, _ in BankManifest.read(folder).files()}
    except NothingMatched:
        kept_names = set()
    except (VerificationFailed, VersionMismatch):
        return
    with storage_errors(f"clear {folder.name}"):
        for path in folder.iterdir():
            if _BANK_FILE.fullmatch(path.name) and path.name not in kept_names:
                path.unlink()
