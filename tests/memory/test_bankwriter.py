"""Writing a bank: from pieces of any size, in files of bounded size, and whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fedmem.errors import StorageError, VersionMismatch
from fedmem.memory import bankfile, bankwriter
from fedmem.memory.bank import Bank, verify, write_bank
from fedmem.memory.manifest import MANIFEST, TEMPORARY, BankManifest
from tests.memory.test_bank import SPEC, bf16, blocks_of, joined, some_paths

BLOCK = 2 * SPEC.block_size(2)  # bytes


def same_bank(folder, levels, generic):
    verify(folder)
    with Bank.open(folder, SPEC) as bank:
        held = [*(bank.blocks(n, 0, SPEC.blocks(n)) for n in (1, 2)), bank.generic()]
    return all(torch.equal(a, bf16(b)) for a, b in zip(held, [*levels, generic], strict=True))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("shard", "counts"), [(1, [1] * 9), (2 * BLOCK, [2, 2, 2, 2, 1]), (9 * BLOCK, [9])])
def test_a_large_level_lies_in_several_files(tmp_path, monkeypatch, shard, counts):
    monkeypatch.setattr(bankwriter, "SHARD_BYTES", shard)
    levels, generic = blocks_of(SPEC)
    write_bank(tmp_path, SPEC, levels, generic)
    manifest = BankManifest.read(tmp_path)
    assert [shard.blocks for shard in manifest.levels[1]] == counts
    read = [load_file(tmp_path / name)["blocks"].float() for name in manifest.names(2)]
    assert torch.equal(torch.cat(read), bf16(levels[1]))
    assert same_bank(tmp_path, levels, generic)
    with Bank.open(tmp_path, SPEC) as bank:
        for path in some_paths(SPEC, 20):
            assert torch.equal(bank.fetch(path).float(), joined(SPEC, levels, path))


@pytest.mark.parametrize("pieces", [1, 2, 4, 9])
@pytest.mark.parametrize("most", [1, 3 * BLOCK, 2**25])
def test_pieces_of_any_size_make_the_same_files(tmp_path, monkeypatch, pieces, most):
    monkeypatch.setattr(bankwriter, "SHARD_BYTES", 4 * BLOCK)
    levels, generic = blocks_of(SPEC)
    write_bank(tmp_path / "whole", SPEC, levels, generic)
    monkeypatch.setattr(bankwriter, "PIECE_BYTES", most)
    write_bank(tmp_path / "parts", SPEC, ((part for part in level.split(pieces)) for level in levels), generic)
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_no_more_than_a_piece_is_held_as_bf16(tmp_path, monkeypatch):
    sizes, raw = [], bankfile.raw
    monkeypatch.setattr(bankwriter, "PIECE_BYTES", 2 * BLOCK)
    monkeypatch.setattr(bankfile, "raw", lambda values: (sizes.append(2 * values.numel()), raw(values))[1])
    levels, generic = blocks_of(SPEC)
    write_bank(tmp_path, SPEC, levels, generic)
    assert sizes == [2 * SPEC.block_size(1)] * 3 + [2 * BLOCK] * 4 + [BLOCK] + [2 * SPEC.fetch_size]


def test_what_a_crash_left_makes_room_before_writing_starts(tmp_path):
    levels, generic = blocks_of(SPEC)
    write_bank(tmp_path, SPEC, levels, generic)
    whole, left = set(files(tmp_path)), tmp_path / f"level-2-1-of-3-{'a' * 16}.safetensors"
    left.write_bytes(bytes(100))

    def first_level():
        assert set(files(tmp_path)) - {TEMPORARY} == whole
        yield levels[0]

    write_bank(tmp_path, SPEC, [first_level(), levels[1]], generic)


@pytest.mark.parametrize(
    "change",
    [
        lambda levels: levels[:1],
        lambda levels: [*levels, levels[1]],
        lambda levels: [levels[0], levels[1][:-1]],
        lambda levels: [levels[0], torch.cat([levels[1], levels[1]])],
        lambda levels: [levels[0], [levels[1], levels[1][:1]]],
        lambda levels: [levels[0], levels[1][:, :-1]],
        lambda levels: [levels[0], list(levels[1])],
        lambda levels: [levels[0], []],
    ],
)
def test_blocks_that_are_not_those_of_the_spec_are_refused_and_the_old_bank_stays(tmp_path, change):
    levels, generic = blocks_of(SPEC)
    write_bank(tmp_path, SPEC, levels, generic)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"block|zip"):
        write_bank(tmp_path, SPEC, change(blocks_of(SPEC, seed=1)[0]), generic)
    assert files(tmp_path) == before


def test_a_generic_block_of_another_size_is_refused(tmp_path):
    levels, generic = blocks_of(SPEC)
    with pytest.raises(ValueError, match="blocks of"):
        write_bank(tmp_path, SPEC, levels, generic[:-1])
    assert files(tmp_path) == {}


def test_a_new_bank_takes_the_place_of_the_old_one(tmp_path):
    write_bank(tmp_path, SPEC, *blocks_of(SPEC))
    write_bank(tmp_path, SPEC, *blocks_of(SPEC, seed=1))
    assert same_bank(tmp_path, *blocks_of(SPEC, seed=1))
    assert set(files(tmp_path)) == {MANIFEST, *(name for name, _ in BankManifest.read(tmp_path).files())}


def test_an_open_bank_stays_what_it_was_while_another_takes_its_place(tmp_path):
    levels, generic = blocks_of(SPEC)
    write_bank(tmp_path, SPEC, levels, generic)
    with Bank.open(tmp_path, SPEC) as bank:
        write_bank(tmp_path, SPEC, *blocks_of(SPEC, seed=1))
        assert torch.equal(bank.fetch((2, 7)).float(), joined(SPEC, levels, (2, 7)))


def test_writing_mends_a_damaged_file_of_the_same_bank(tmp_path):
    write_bank(tmp_path, SPEC, *blocks_of(SPEC))
    path = tmp_path / BankManifest.read(tmp_path).names(1)[0]
    path.write_bytes(bytes(len(path.read_bytes())))
    write_bank(tmp_path, SPEC, *blocks_of(SPEC))
    assert same_bank(tmp_path, *blocks_of(SPEC))


def test_files_that_are_no_bank_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "level-1.safetensors").write_text("mine")
    write_bank(tmp_path, SPEC, *blocks_of(SPEC))
    write_bank(tmp_path, SPEC, *blocks_of(SPEC, seed=1))
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "level-1.safetensors").read_text() == "mine"


def test_a_bank_of_a_newer_format_is_not_lost_to_a_writing_that_fails(tmp_path):
    write_bank(tmp_path, SPEC, *blocks_of(SPEC))
    manifest = tmp_path / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"format":1', b'"format":2'))
    before = files(tmp_path)
    with pytest.raises(ValueError, match="block"):
        write_bank(tmp_path, SPEC, [*blocks_of(SPEC, seed=1)[0][:1], []], blocks_of(SPEC)[1])
    assert before.items() <= files(tmp_path).items()
    with pytest.raises(VersionMismatch):
        Bank.open(tmp_path, SPEC)


class PowerCut(BaseException):
    """What no handler catches."""


def cut_at(monkeypatch, number, error):
    """Let the n-th operation on the disk that makes something lasting raise `error`; a list of those that came."""
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def operation(*args, real=real, name=name):
            done.append(name)
            if len(done) == number:
                raise error
            return real(*args)

        monkeypatch.setattr(os, name, operation)
    return done


def every_cut(tmp_path, error, expected, after):
    """Write a second bank over a first, cut at its first, second, … operation, until one writing comes through."""
    for number in range(1, 100):
        folder = tmp_path / str(number)
        write_bank(folder, SPEC, *blocks_of(SPEC))
        with pytest.MonkeyPatch.context() as patch:
            done = cut_at(patch, number, error)
            if error is CUT:
                patch.setattr(bankwriter, "sweep", lambda folder: None)
            try:
                write_bank(folder, SPEC, *blocks_of(SPEC, seed=1))
            except expected:
                came = False
            else:
                came = True
        after(folder, came, done)
        shutil.rmtree(folder)
        if came:
            return number
    raise AssertionError("no writing came through")


CUT = PowerCut()


def test_a_power_cut_leaves_the_old_bank_or_the_new_one(tmp_path):
    seen = set()

    def after(folder, came, _done):
        seed = 1 if not same_bank(folder, *blocks_of(SPEC)) else 0
        assert same_bank(folder, *blocks_of(SPEC, seed=seed))
        assert seed == 1 or not came
        seen.add((seed, came))
        write_bank(folder, SPEC, *blocks_of(SPEC, seed=2))
        assert set(files(folder)) == {MANIFEST, *(name for name, _ in BankManifest.read(folder).files())}

    # Three files, each synced and renamed; the manifest synced, the folder, its rename, the folder.
    assert every_cut(tmp_path, CUT, PowerCut, after) == 3 * 2 + 4 + 1
    assert seen == {(0, False), (1, False), (1, True)}


def test_a_full_disk_is_an_error_and_gives_its_space_back(tmp_path):
    for seed in (0, 1):
        write_bank(tmp_path / f"seed-{seed}", SPEC, *blocks_of(SPEC, seed=seed))
    old, new = files(tmp_path / "seed-0"), files(tmp_path / "seed-1")

    def after(folder, came, done):
        assert files(folder) == (new if came or len(done) == 10 else old)  # the tenth comes after the last rename

    every_cut(tmp_path, OSError(errno.ENOSPC, "No space left on device"), StorageError, after)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_what_the_system_says_of_a_full_disk_reaches_the_user(tmp_path, monkeypatch):
    write_bank(tmp_path, SPEC, *blocks_of(SPEC))
    before = files(tmp_path)
    monkeypatch.setattr(bankwriter, "TEMPORARY", "/dev/full")
    with pytest.raises(StorageError, match=r"No space left.*free some space"):
        write_bank(tmp_path, SPEC, *blocks_of(SPEC, seed=1))
    assert files(tmp_path) == before


SMALL_MEMORY = """
import sys, torch
from pathlib import Path
from fedmem.memory.bank import Bank, verify, write_bank
from fedmem.memory.spec import LayerShape, MemorySpec

shape = LayerShape(d_model=256, ffn=512, heads=2, kv_heads=2, head_dim=128, gated=True, activation="silu")
spec = MemorySpec("ffn", shape, branching=8, widths=((256,) * 8, (256,) * 8))
def peak():  # not ru_maxrss: a process inherits that from the one that started it
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
one = torch.zeros(3 * 256)
write_bank(Path(sys.argv[1], "first"), MemorySpec("ffn", shape, 1, ((1,),)), [one[None]], one)
before = peak()
blocks = ((torch.full((1, spec.block_size(n)), float(i)) for i in range(spec.blocks(n))) for n in (1, 2))
write_bank(Path(sys.argv[1]), spec, blocks, torch.zeros(spec.fetch_size))
verify(Path(sys.argv[1]))
with Bank.open(Path(sys.argv[1]), spec, cache_bytes=0) as bank:
    for leaf in range(64):
        assert bank.fetch((leaf // 8, leaf))[-1] == leaf
print(2 * spec.bank_size, peak() - before)
"""


def test_a_bank_larger_than_memory_is_written_and_read_within_little(tmp_path):
    command = [sys.executable, "-c", SMALL_MEMORY, str(tmp_path)]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    bank, grown = map(int, found.stdout.split())
    assert bank > 200 * 2**20
    assert grown < 64 * 2**20
