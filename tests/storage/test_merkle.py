"""The Merkle tree hash of RFC 6962: known answers, and every change of a list."""

import hashlib

import pytest

from fedmem.storage import merkle

# The leaves and roots of the test of the Certificate Transparency reference implementation.
LEAVES = [bytes.fromhex(leaf) for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                           "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("size", range(1, 9))
def test_known_answers(size: int) -> None:
    assert merkle.root(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_no_leaf() -> None:
    assert merkle.root([]) == hashlib.sha256().digest()


@pytest.mark.parametrize("size", [2, 3, 7, 8, 13])
def test_every_change_gives_another_root(size: int) -> None:
    leaves = [bytes([n]) for n in range(size)]
    roots = {merkle.root(leaves), merkle.root([*leaves, leaves[-1]]), merkle.root(leaves[:-1])}
    for at in range(size):
        roots.add(merkle.root([*leaves[:at], b"other", *leaves[at + 1 :]]))
    for at in range(size - 1):
        roots.add(merkle.root([*leaves[:at], leaves[at + 1], leaves[at], *leaves[at + 2 :]]))
    assert len(roots) == 3 + size + size - 1


def test_a_node_is_no_leaf() -> None:
    left, right = (hashlib.sha256(b"\0" + leaf).digest() for leaf in (b"a", b"b"))
    assert merkle.root([left + right]) != merkle.root([b"a", b"b"])
