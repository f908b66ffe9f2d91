"""The bank on disk: a fetch is the blocks that were written, whatever was fetched before; damage is a typed error."""

import os
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fedmem.errors import NothingMatched, StorageError, VerificationFailed, VersionMismatch
from fedmem.memory.bank import Bank, verify, write_bank
from fedmem.memory.manifest import BankManifest
from fedmem.memory.spec import LayerShape, MemorySpec
from tests.storage.forked import in_child

SHAPE = LayerShape(d_model=8, ffn=16, heads=2, kv_heads=2, head_dim=4, gated=True, activation="silu")
SPEC = MemorySpec("ffn", SHAPE, branching=3, widths=((4, 4), (2, 1)))
SPECS = {
    "ffn": SPEC,
    "uneven": MemorySpec("ffn", SHAPE, branching=2, widths=((0, 5, 1), (3, 0, 0), (1, 2, 0))),
    "empty last level": MemorySpec("ffn", SHAPE, branching=3, widths=((4, 4), (2, 2), (0, 0))),
    "one level": MemorySpec("kv", SHAPE, branching=5, widths=((2, 3),)),
    "lora": MemorySpec("lora_qk", SHAPE, branching=2, widths=((2, 2), (1, 1))),
}
FETCH = 2 * SPEC.fetch_size  # bytes


def blocks_of(spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(spec.blocks(n), spec.block_size(n), generator=generator) for n in range(1, spec.levels + 1)]
    return levels, torch.randn(spec.fetch_size, generator=generator)


def bf16(rows):
    return rows.to(torch.bfloat16).float()


def joined(spec, levels, path):
    return spec.join([bf16(level[block][None]) for level, block in zip(levels, path, strict=True)])[0]


def some_paths(spec, count, seed=0):
    draw = random.Random(seed)
    return [tuple(draw.randrange(spec.blocks(n)) for n in range(1, spec.levels + 1)) for _ in range(count)]


@pytest.fixture
def written(tmp_path):
    levels, generic = blocks_of(SPEC)
    write_bank(tmp_path, SPEC, levels, generic)
    return tmp_path, levels, generic


@pytest.fixture
def reads(monkeypatch):
    """Files and offsets of what is read."""
    seen, preadv = [], os.preadv

    def noted(file, parts, offset):
        seen.append((file, offset))
        return preadv(file, parts, offset)

    monkeypatch.setattr(os, "preadv", noted)
    return seen


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("held", [0, 3, 1000])
def test_a_fetch_is_the_join_of_its_blocks_whatever_was_fetched_before(tmp_path, name, held):
    spec = SPECS[name]
    levels, generic = blocks_of(spec)
    write_bank(tmp_path, spec, levels, generic)
    with Bank.open(tmp_path, spec, cache_bytes=held * 2 * spec.fetch_size) as bank:
        for path in some_paths(spec, 60):
            fetched = bank.fetch(path)
            assert fetched.dtype is torch.bfloat16
            assert torch.equal(fetched.float(), joined(spec, levels, path))
        assert torch.equal(bank.generic(), bf16(generic))
        for number, level in enumerate(levels, start=1):
            assert torch.equal(bank.blocks(number, 0, len(level)), bf16(level))


def test_a_batch_is_a_copy(written):
    folder, levels, _ = written
    paths = [(0, 1), (2, 7), (0, 1)]
    with Bank.open(folder, SPEC) as bank:
        fetched_BX = bank.fetch_many(iter(paths))
        bank.fetch((1, 5))
    assert torch.equal(fetched_BX, torch.stack([joined(SPEC, levels, path) for path in paths]))


def test_an_empty_batch_is_an_empty_tensor(written):
    with Bank.open(written[0], SPEC) as bank:
        assert bank.fetch_many([]).shape == (0, SPEC.fetch_size)


def test_a_fetch_is_one_read_for_each_level(written, reads):
    with Bank.open(written[0], SPEC) as bank:
        bank.fetch((0, 1))
        assert len(reads) == len({file for file, _ in reads}) == SPEC.levels


@pytest.mark.parametrize("path", [(0, 9), (3, 0), (-1, 0), (0, -1)])
def test_a_path_outside_the_tree_is_refused(written, path):
    with Bank.open(written[0], SPEC) as bank, pytest.raises(NothingMatched, match="none with number"):
        bank.fetch(path)


@pytest.mark.parametrize("path", [(), (1,), (1, 3, 9)])
def test_a_path_of_another_length_is_refused(written, path):
    with Bank.open(written[0], SPEC) as bank, pytest.raises(NothingMatched, match="has 2 blocks"):
        bank.fetch(path)


def test_each_level_is_a_safetensors_file_that_another_reader_reads(written):
    folder, levels, generic = written
    manifest = BankManifest.read(folder)
    for number, level in enumerate(levels, start=1):
        (name,) = manifest.names(number)
        assert torch.equal(load_file(folder / name)["blocks"].float(), bf16(level))
    assert torch.equal(load_file(folder / manifest.generic_name)["blocks"].float(), bf16(generic)[None])


def test_a_missing_level_is_refused(written):
    (written[0] / BankManifest.read(written[0]).names(1)[0]).unlink()
    with pytest.raises(StorageError, match="missing"):
        Bank.open(written[0], SPEC)


def test_a_bank_of_another_shape_is_refused(written):
    with pytest.raises(VersionMismatch, match="another shape"):
        Bank.open(written[0], replace(SPEC, widths=((2, 2), (2, 2))))


def test_a_bank_of_another_anchor_is_refused(written):
    folder, levels, generic = written
    write_bank(folder, SPEC, levels, generic, anchor="a" * 64)
    Bank.open(folder, SPEC).close()
    Bank.open(folder, SPEC, anchor="a" * 64).close()
    with pytest.raises(VersionMismatch, match="another anchor"):
        Bank.open(folder, SPEC, anchor="b" * 64)


def test_a_bank_that_names_no_anchor_belongs_to_none(written):
    with pytest.raises(VersionMismatch, match="another anchor"):
        Bank.open(written[0], SPEC, anchor="a" * 64)


def test_a_folder_without_a_bank_is_nothing(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(NothingMatched, match="no bank"):
            Bank.open(folder, SPEC)


def test_verify_finds_every_changed_byte_and_says_where(written):
    folder = written[0]
    verify(folder)
    for name, _ in BankManifest.read(folder).files():
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        Bank.open(folder, SPEC).close()  # opening does not read blocks
        with pytest.raises(VerificationFailed, match=name):
            verify(folder)
        (folder / name).unlink()
        with pytest.raises(VerificationFailed, match=name):
            verify(folder)
        (folder / name).write_bytes(whole)
    verify(folder)


def test_closing_twice_is_harmless_and_a_closed_bank_reads_nothing(written):
    bank = Bank.open(written[0], SPEC)
    bank.close(), bank.close()
    with pytest.raises(ValueError, match="closed"):
        bank.fetch((0, 1))


def test_a_forked_child_fetches_while_a_thread_of_the_parent_does(written):
    folder, levels, _ = written
    with Bank.open(folder, SPEC) as bank:
        path = some_paths(SPEC, 1)[0]
        with bank._copying:  # as in a thread of the parent
            answer, _ = in_child(lambda: torch.equal(bank.fetch_many([path])[0], joined(SPEC, levels, path)))
        assert answer == "True"
