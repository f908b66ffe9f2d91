"""Parameters come back bit for bit, and an anchor alone brings no bank."""

from pathlib import Path

import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.memory.sites import spec_for
from fedmem.sim import parameters
from fedmem.training.bank_state import BankState

MODEL = new_anchor("nano", 64, 1)
SPEC = spec_for(MODEL, "ffn", 2, [4, 2])


def test_anchor_and_bank_come_back_bit_for_bit(tmp_path: Path) -> None:
    state = BankState.new(SPEC, 3)
    state.generic[0] = torch.finfo(torch.float32).smallest_normal
    parameters.save(tmp_path / "a.safetensors", MODEL, state)
    other = new_anchor("nano", 64, 2)
    loaded = parameters.load(tmp_path / "a.safetensors", other, SPEC)
    assert loaded is not None
    assert all(torch.equal(*pair) for pair in zip(MODEL.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(*pair) for pair in zip(state.levels, loaded.levels, strict=True))
    assert torch.equal(state.generic, loaded.generic)


def test_an_anchor_alone_has_no_bank_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    parameters.save(path, MODEL, BankState.new(SPEC, 3))
    parameters.save(path, MODEL)
    assert parameters.load(path, new_anchor("nano", 64, 2), SPEC) is None


def test_an_anchor_of_another_shape_is_not_filled(tmp_path: Path) -> None:
    parameters.save(tmp_path / "a.safetensors", MODEL)
    with pytest.raises(RuntimeError, match="size"):
        parameters.load(tmp_path / "a.safetensors", new_anchor("nano", 65, 2), SPEC)
