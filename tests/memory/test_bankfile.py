"""One file of a bank: blocks on pages, reads in parts, and refusal of another header or length."""

import os

import pytest
import torch

from fedmem.errors import StorageError, VersionMismatch
from fedmem.memory import bankfile
from fedmem.memory.bank import Bank, write_bank
from fedmem.memory.bankfile import BlockFile, write_blocks
from fedmem.memory.manifest import BankManifest
from tests.memory.test_bank import SPEC, blocks_of, joined, written

__all__ = ["written"]


def test_blocks_start_on_a_page(tmp_path):
    levels, generic = blocks_of(SPEC)
    write_bank(tmp_path, SPEC, levels, generic)
    for name, _ in BankManifest.read(tmp_path).files():
        whole = (tmp_path / name).read_bytes()
        assert (8 + int.from_bytes(whole[:8], "little")) % bankfile.PAGE == 0


def test_reads_that_come_in_parts_are_put_together(written, monkeypatch):
    folder, levels, _ = written
    preadv = os.preadv
    monkeypatch.setattr(bankfile, "MOST_PARTS", 3)
    # At most 50 bytes at a time: in the middle of a part, and of a value.
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: preadv(file, [parts[0][:50], *parts[1:]][:1], at))
    with Bank.open(folder, SPEC) as bank:
        assert torch.equal(bank.fetch((2, 7)).float(), joined(SPEC, levels, (2, 7)))


def test_a_file_that_shrinks_while_it_is_open_is_an_error(written):
    folder = written[0]
    with Bank.open(folder, SPEC) as bank:
        os.truncate(folder / BankManifest.read(folder).names(2)[0], bankfile.PAGE + 10)
        with pytest.raises(StorageError, match="ended early"):
            bank.fetch((0, 0))


@pytest.mark.parametrize("left", [0, 1, 5000, -1])
def test_a_truncated_level_is_refused(written, left):
    path = written[0] / BankManifest.read(written[0]).names(2)[0]
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(StorageError, match="truncated"):
        Bank.open(written[0], SPEC)


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data.replace(b"[9,", b"[8,", 1)])
def test_a_level_of_another_shape_is_refused(written, change):
    path = written[0] / BankManifest.read(written[0]).names(2)[0]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VersionMismatch):
        Bank.open(written[0], SPEC)


def test_a_file_is_read_block_by_block_into_parts_of_any_size(tmp_path):
    blocks_NX = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    write_blocks(tmp_path / "file", 3, 5, iter([blocks_NX[:2], blocks_NX[2:]]))
    file, target_X = BlockFile(tmp_path / "file", 3, 5), torch.zeros(5, dtype=torch.bfloat16)
    whole = bankfile.raw(target_X)
    for number, block_X in enumerate(blocks_NX):
        file.read(number, [whole[:3], whole[3:3], whole[3:]])
        assert torch.equal(target_X, block_X)
    file.close(), file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(0, [whole])


def test_tensors_after_the_last_block_stay_in_the_iterator(tmp_path):
    parts = iter([torch.zeros(2, 4), torch.ones(1, 4)])
    write_blocks(tmp_path / "file", 2, 4, parts)
    assert torch.equal(next(parts), torch.ones(1, 4))
