"""A bank as a stream: what passes through in pieces is the bank, byte by byte."""

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.memory.sites import spec_for
from fedmem.routing.tree import Tree
from fedmem.training import bank_state
from fedmem.training.bank_state import BankState, BankStream
from fedmem.training.release import Release

MODEL = new_anchor("nano", 300, 1)
SPEC = spec_for(MODEL, "ffn", 3, (4, 2))
PIECE = 4 * SPEC.block_size(2)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(bank_state, "PIECE", PIECE)


def test_a_stream_is_the_bank_again_and_again():
    state, stream = BankState.new(SPEC, 3), BankStream.new(SPEC, 3)
    for level, blocks_NX in enumerate(state.levels, start=1):
        for _ in range(2):
            assert torch.equal(torch.cat(list(stream.pieces(level))), blocks_NX)
    assert torch.equal(stream.generic, state.generic)
    assert not torch.equal(BankStream.new(SPEC, 4).generic, state.generic)


def test_no_piece_is_larger_than_a_piece():
    sizes = [piece.numel() for level in (1, 2) for piece in BankStream.new(SPEC, 3).pieces(level)]
    assert len(sizes) > 4
    assert max(sizes) <= PIECE


def test_a_release_takes_and_gives_it_in_pieces(tmp_path):
    tree, tokenizer = Tree(3, 2, tuple(np.eye(n, 9, dtype=np.float32) for n in (3, 9))), train_tokenizer(["a"], 300)
    held = 0

    def counted(level):
        nonlocal held
        for piece in BankStream.new(SPEC, 3).pieces(level):
            held = max(held, piece.numel())
            yield piece

    bank = BankStream(SPEC, counted, BankState.new(SPEC, 3).generic)
    release = Release.write(tmp_path, MODEL, tokenizer, tree, "e" * 64, bank)
    assert held <= PIECE
    whole = Release.write(tmp_path / "whole", MODEL, tokenizer, tree, "e" * 64, BankState.new(SPEC, 3).stream())
    assert release.digest == whole.digest
    read = [piece for level in (1, 2) for piece in release.bank_stream().pieces(level)]
    assert max(piece.numel() for piece in read) <= PIECE
    for found, level in zip(release.bank_state().levels, BankState.new(SPEC, 3).levels, strict=True):
        assert torch.equal(found, level.bfloat16().float())


def test_below_a_node_of_level_1():
    below = BankStream(SPEC, lambda _: [], torch.zeros(SPEC.fetch_size), root=1)
    assert [below.blocks(level) for level in (1, 2)] == [1, 3]
    assert [*below.spans(2)] == [(0, 3)]
