"""A fetch from a bank on disk, cold and warm, beside the least that moves its bytes: `python -m benchmarks.fetch`.

The bank has the shape of the paper's for its 160M anchor: 18.06M values a fetch, 4.62 billion in all, 9.2 GB of random
bytes, written block by block. Cold: the kernel is told to drop the files, `mincore` must find no page of the path in
memory, and the other arm reads the same ranges with one plain `pread` each. Warm: `mincore` must find all of them, and
the other arm copies as many bytes from memory to memory. Memory: the process's peak once the bank is built and every
path was fetched. Paths follow one another so that no block of one was in the fetches kept from before: every byte of
every fetch is read.
"""

import mmap
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from ctypes import CDLL, c_size_t, c_void_p, get_errno
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from fedmem.memory.bank import CACHE_BYTES, Bank, write_bank
from fedmem.memory.bankfile import BYTES_PER_VALUE, header
from fedmem.memory.manifest import BankManifest
from fedmem.memory.spec import LayerShape, MemorySpec

SHAPE = LayerShape(d_model=512, ffn=2048, heads=12, kv_heads=12, head_dim=32, gated=True, activation="silu")
LAYERS, WIDTHS, BRANCHING, QUICK_BRANCHING = 35, (256, 64, 16, 0), 16, 7
PATHS, SEED, DRAWN = 128, 0, 2**17
COLD_LIMIT, WARM_LIMIT, RSS_LIMIT_MB = 1.3, 1.5, 500


def random_blocks(spec: MemorySpec, level: int) -> Iterator[Tensor]:
    """Yield the blocks of a level with random bits, one at a time in a reused buffer. Yield empty blocks at once."""
    rng, size = np.random.default_rng([SEED, level]), spec.block_size(level)
    if not size:
        yield torch.empty(spec.blocks(level), 0, dtype=torch.bfloat16)
        return
    words = np.empty(size * BYTES_PER_VALUE // 8, np.int64)
    for number in range(spec.blocks(level)):
        if number % 256 == 0:
            harness.progress(f"level {level}: {number} of {spec.blocks(level)} blocks")
        for at in range(0, len(words), DRAWN):
            words[at : at + DRAWN] = rng.integers(-(2**63), 2**63 - 1, len(words[at : at + DRAWN]), endpoint=True)
        yield torch.from_numpy(words).view(torch.bfloat16)[None]


def build(folder: Path, spec: MemorySpec) -> float:
    """Write the bank. Return the seconds."""
    start = time.perf_counter()
    levels = (random_blocks(spec, level) for level in range(1, spec.levels + 1))
    write_bank(folder, spec, levels, torch.zeros(spec.fetch_size, dtype=torch.bfloat16))
    return time.perf_counter() - start


def distinct_paths(spec: MemorySpec) -> list[tuple[int, ...]]:
    """Return `PATHS` paths to different leaves. Neighbours share no block: each takes the next child first."""
    paths = []
    for number in range(PATHS):
        blocks = [0]
        for level in range(spec.levels):
            blocks.append(blocks[-1] * spec.branching + number // spec.branching**level % spec.branching)
        paths.append(tuple(blocks[1:]))
    return paths


class Files:
    """The level files as the kernel sees them: their pages in memory, and plain reads."""

    def __init__(self, folder: Path, spec: MemorySpec) -> None:
        self._spec, manifest = spec, BankManifest.read(folder)
        self._levels = [
            [(folder / name, s.blocks) for name, s in zip(manifest.names(n), manifest.levels[n - 1], strict=True)]
            for n in range(1, spec.levels + 1)
            if spec.block_size(n)
        ]
        paths = [path for level in self._levels for path, _ in level]
        self._open = {path: os.open(path, os.O_RDONLY) for path in paths}
        self._maps = {path: mmap.mmap(file, 0, prot=mmap.PROT_READ) for path, file in self._open.items()}
        self.buffer = np.zeros(spec.fetch_size * BYTES_PER_VALUE, np.uint8)
        self._libc = CDLL(None, use_errno=True)

    def ranges(self, path: tuple[int, ...]) -> list[tuple[Path, int, int]]:
        """Return file, start and bytes of every block of a path."""
        return [self._range(number, block) for number, block in enumerate(path[: len(self._levels)], start=1)]

    def _range(self, number: int, block: int) -> tuple[Path, int, int]:
        size = self._spec.block_size(number)
        for path, count in self._levels[number - 1]:
            if block < count:
                length = size * BYTES_PER_VALUE
                return path, len(header(count, size)) + block * length, length
            block -= count
        raise AssertionError("a path of the benchmark leads out of its tree")

    def evict(self) -> None:
        """Tell the kernel to drop every page of the bank."""
        for file in self._open.values():
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def pages(self, path: tuple[int, ...]) -> tuple[int, int]:
        """Return the number of pages of the path's blocks that are in memory, and the number of all."""
        flags = [self._mincore(self._maps[file], start, start + length) for file, start, length in self.ranges(path)]
        return sum(int((found & 1).sum()) for found in flags), sum(len(found) for found in flags)

    def _mincore(self, mapped: mmap.mmap, start: int, stop: int) -> np.ndarray:
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        flags = np.zeros(-(-(stop - first) // mmap.PAGESIZE), np.uint8)
        at = np.frombuffer(mapped, np.uint8).ctypes.data + first
        if self._libc.mincore(c_void_p(at), c_size_t(stop - first), flags.ctypes.data_as(c_void_p)):
            raise OSError(get_errno(), "mincore failed")
        return flags

    def read(self, path: tuple[int, ...]) -> np.ndarray:
        """Read the blocks of a path, with one `pread` each into a reused buffer."""
        at = 0
        for file, start, length in self.ranges(path):
            assert os.preadv(self._open[file], [self.buffer.data[at : at + length]], start) == length
            at += length
        return self.buffer

    def close(self) -> None:
        """Close the files. Their maps are freed with the last array that uses them."""
        for file in self._open.values():
            os.close(file)


Arm = Callable[[tuple[int, ...]], object]


def turns(arms: Mapping[str, Arm], paths: list[tuple[int, ...]], before: Arm) -> dict[str, np.ndarray]:
    """Return seconds of each arm for each path, without the time of `before`. The order of the arms alternates."""
    seconds = {name: np.zeros(len(paths)) for name in arms}
    for turn, path in enumerate(paths):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            before(path)
            start = time.perf_counter()
            arms[name](path)
            seconds[name][turn] = time.perf_counter() - start
        harness.progress(f"{turn + 1} of {len(paths)} paths")
    return seconds


def measured(folder: Path, spec: MemorySpec) -> dict[str, Any]:
    """Return the figures of one bank."""
    paths = distinct_paths(spec)
    with Bank.open(folder, spec) as bank:
        for path in paths:
            bank.fetch(path)
        peak = peak_mb()  # before there are buffers of other arms
        return {"peak_rss_mb": peak, **timed(Files(folder, spec), bank, spec, paths)}


def timed(files: Files, bank: Bank, spec: MemorySpec, paths: list[tuple[int, ...]]) -> dict[str, Any]:
    """Time fetches against cold raw reads and warm copies. Check which pages were in memory."""
    target, pages = np.ones_like(files.buffer), {"cold": 0, "missing": 0}

    def cold(path: tuple[int, ...]) -> None:
        files.evict()
        pages["cold"] += files.pages(path)[0]

    def warm(path: tuple[int, ...]) -> None:
        held, wanted = files.pages(path)
        if held < wanted:  # another process pushed them out
            files.read(path)
            held, wanted = files.pages(path)
        pages["missing"] += wanted - held

    cold_seconds = turns({"fetch": bank.fetch, "raw_read": files.read}, paths, cold)
    exact = all(same(spec, bank.fetch(path), files.read(path)) for path in paths)
    warm_seconds = turns({"fetch": bank.fetch, "memcpy": lambda _: np.copyto(target, files.buffer)}, paths, warm)
    files.close()
    checks = {
        "no_page_in_memory_when_cold": pages["cold"] == 0,
        "every_page_in_memory_when_warm": pages["missing"] == 0,
        "fetch_is_what_lies_on_disk": exact,
    }
    return {**figures(cold_seconds, warm_seconds), "checks": checks}


def peak_mb() -> float:
    """Return the greatest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def same(spec: MemorySpec, fetched_X: Tensor, blocks: np.ndarray) -> bool:
    """Return True if the fetch consists of the bytes of the blocks on disk."""
    sizes = [spec.block_size(level) for level in range(1, spec.levels + 1)]
    levels = torch.from_numpy(blocks).view(torch.int16).split(sizes)
    pieces = fetched_X.view(torch.int16).split([piece.stop - piece.start for piece in spec.pieces])
    return all(
        torch.equal(found, levels[p.level][p.start : p.stop]) for found, p in zip(pieces, spec.pieces, strict=True)
    )


def figures(cold: dict[str, np.ndarray], warm: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return ratios with their intervals, and medians."""
    cold_ratio, cold_interval = harness.ratio(cold["fetch"], cold["raw_read"])
    warm_ratio, warm_interval = harness.ratio(warm["fetch"], warm["memcpy"])
    medians = {"cold": cold, "warm": warm}
    return {
        "ratio": {"cold_over_raw_read": cold_ratio, "warm_over_memcpy": warm_ratio},
        "interval": {"ratio.cold_over_raw_read": cold_interval, "ratio.warm_over_memcpy": warm_interval},
        "ms": {arm: {name: 1000 * float(np.median(s)) for name, s in found.items()} for arm, found in medians.items()},
    }


def main() -> None:
    """Build a bank, measure, and remove it. Exit with 12 if a limit or a check does not hold."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the bank is built for the time of the run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = MemorySpec(
        "ffn", SHAPE, QUICK_BRANCHING if arguments.quick else BRANCHING, tuple((w,) * LAYERS for w in WIDTHS)
    )
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=arguments.folder) as folder:
        seconds = build(Path(folder), spec)
        data = measured(Path(folder), spec)
    data |= {
        "bank_values": spec.bank_size,
        "bank_bytes": spec.bank_size * BYTES_PER_VALUE,
        "fetched_values": spec.fetch_size,
        "distinct_paths": PATHS,
        "kept_fetches_bytes": CACHE_BYTES,
        "build_seconds": seconds,
        "machine": harness.machine(),
    }
    ratio = data["ratio"]
    data["checks"] |= {
        "cold_within_limit": ratio["cold_over_raw_read"] <= COLD_LIMIT,
        "warm_within_limit": ratio["warm_over_memcpy"] <= WARM_LIMIT,
        "memory_within_limit": data["peak_rss_mb"] < RSS_LIMIT_MB,
    }
    harness.emit("fetch", data, arguments)
    if not all(data["checks"].values()):
        raise SystemExit(12)


if __name__ == "__main__":
    main()
