"""The manifest of a bank: its spec, its files with their digests, and the anchor it was made for.

Invariants
- A file is named by what it holds, and the manifest is replaced in one rename: a bank is its old self or its new one.
- Names follow from the manifest and are not read from it, so none can point out of the folder.

    manifest = Manifest.read(folder)
    names = manifest.files()
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.memory.bankfile import disk_errors
from fedmem.memory.spec import MemorySpec
from fedmem.storage.canonical import canonical_json

MANIFEST = "bank.json"
TEMPORARY = "bank.tmp"
FORMAT = 1
_OURS = re.compile(r"(level-\d+(-\d+-of-\d+)?|generic)-[0-9a-f]{16}\.safetensors|bank\.tmp")


class Shard(NamedTuple):
    """A file of a level: how many blocks it holds, and its SHA-256."""

    blocks: int
    sha256: str


@dataclass(frozen=True)
class BankManifest:
    """What `bank.json` says; `levels[l]` are the files of level l + 1, in the order of their blocks."""

    spec: MemorySpec
    levels: tuple[tuple[Shard, ...], ...]
    generic: str
    anchor: str | None

    def names(self, level: int) -> list[str]:
        """File names of a level, counted from 1."""
        shards = self.levels[level - 1]
        return [level_file(level, number, len(shards), s.sha256) for number, s in enumerate(shards, start=1)]

    @property
    def generic_name(self) -> str:
        """File name of the generic block."""
        return generic_file(self.generic)

    def files(self) -> Iterator[tuple[str, str]]:
        """Every file's name and SHA-256."""
        for level, shards in enumerate(self.levels, start=1):
            yield from zip(self.names(level), (shard.sha256 for shard in shards), strict=True)
        yield self.generic_name, self.generic

    @classmethod
    def read(cls, folder: Path) -> "BankManifest":
        """The manifest of the bank in `folder`. Raises NothingMatched, VersionMismatch or VerificationFailed."""
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
        held = [sum(shard.blocks for shard in shards) for shards in levels]
        if held != [spec.blocks(level) for level in range(1, spec.levels + 1)]:
            raise ValueError("the files hold another number of blocks")
        return cls(spec, levels, _sha256(data["generic"]), data["anchor"])

    def write(self, folder: Path) -> None:
        """Make this the manifest of `folder`, durably; its files must be there."""
        data = {
            "format": FORMAT,
            "memory": self.spec.to_dict(),
            "levels": [[list(shard) for shard in shards] for shards in self.levels],
            "generic": self.generic,
            "anchor": self.anchor,
        }
        with (folder / TEMPORARY).open("wb") as file:
            file.write(canonical_json(data))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
        os.replace(folder / TEMPORARY, folder / MANIFEST)
        sync_folder(folder)


def _read(path: Path) -> bytes:
    with disk_errors(f"read {path.name}"):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NothingMatched(f"{path.parent.name} holds no bank; fetch or build one.") from None


def level_file(level: int, number: int, shards: int, sha256: str) -> str:
    """File name of a shard of a level, both counted from 1."""
    part = f"-{number}-of-{shards}" if shards > 1 else ""
    return f"level-{level}{part}-{sha256[:16]}.safetensors"


def generic_file(sha256: str) -> str:
    """File name of the generic block."""
    return f"generic-{sha256[:16]}.safetensors"


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("not a SHA-256 in hex")
    return text


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the files of banks, in `folder`, that its manifest does not name; none where it cannot be read."""
    try:
        keep = {name for name, _ in BankManifest.read(folder).files()}
    except NothingMatched:
        keep = set()
    except (VerificationFailed, VersionMismatch):
        return
    with disk_errors(f"clear {folder.name}"):
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in keep:
                path.unlink()
