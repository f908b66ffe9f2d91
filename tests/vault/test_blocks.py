"""Private blocks: a damaged or exchanged container does not open."""

import pytest

from fedmem.errors import (
    NothingMatched,
    VerificationFailed,
)
from fedmem.vault.crypto.container import TruncatedContainer


def test_block_that_does_not_exist(vaults) -> None:
    vault = vaults.create()
    with pytest.raises(NothingMatched, match="fedmem block list"):
        vault.block("absent")
    with pytest.raises(NothingMatched):
        vault.block_rows("../../etc/passwd")


def test_truncated_block_is_refused_and_others_open(vaults) -> None:
    vault = vaults.create()
    first, second = vaults.block(vault), vaults.block(vault, "another", b"other rows")
    path = vault.core.block_file(first)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(TruncatedContainer) as caught:
        vault.block_rows(first)
    assert caught.value.exit_code == 6
    assert vault.block_rows(second) == b"other rows"
    path.write_bytes(whole)
    assert vault.block_rows(first).startswith(b"rows-canary")


def test_blocks_cannot_be_exchanged_or_rolled_back(vaults) -> None:
    vault = vaults.create()
    first, second = vaults.block(vault), vaults.block(vault)
    assert [(block.id, block.version) for block in vault.blocks()] == [(first, 1), (second, 2)]
    assert vault.block(vaults.TOPIC).id == second
    vault.core.block_file(second).write_bytes(vault.core.block_file(first).read_bytes())
    with pytest.raises(VerificationFailed):
        vault.block_rows(second)
