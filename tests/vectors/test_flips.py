"""No single changed bit of a container or of a receipt goes unnoticed: each is a typed error, never another content."""

import json
import random
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedmem.erasure import receipt
from fedmem.errors import VerificationFailed, VersionMismatch
from fedmem.vault.crypto import container

KEY = bytes(range(32))
HEADER = {"kind": "block", "id": "00" * 16, "vault": "11" * 16, "release": "r" * 64, "version": 1,
          "spec": {"layers": 2, "width": 4, "d_model": 8}}  # fmt: skip
BODY_FLIPS = 10_000


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def ends(open_it: Callable[[bytes], object], data: bytes, bits: list[int]) -> Counter[str]:
    """How opening ends for each flipped bit; "opened" where nothing noticed."""
    found: Counter[str] = Counter()
    for bit in bits:
        try:
            open_it(flipped(data, bit))
            found["opened"] += 1
        except (VerificationFailed, VersionMismatch) as error:
            found[type(error).__name__] += 1
    return found


def opener(data: bytes) -> object:
    return container.unseal(KEY, data, identity="block/b1")


def test_every_bit_of_a_header() -> None:
    sealed = container.seal(KEY, HEADER, b"rows" * 9, identity="block/b1")
    start = container.read_header(sealed)[1]
    found = ends(opener, sealed, list(range(8 * start)))
    assert found.total() == 8 * start
    assert set(found) == {"WrongKey", "ContainerCorrupt", "TruncatedContainer", "VersionMismatch"}


@pytest.mark.parametrize("size", [40, 2 * 16384 + 7])
def test_ten_thousand_bits_of_a_body(size: int) -> None:
    sealed = container.seal(KEY, HEADER, bytes(i % 251 for i in range(size)), identity="block/b1")
    start = container.read_header(sealed)[1]
    draw = random.Random(size)
    bits = [draw.randrange(8 * start, 8 * len(sealed)) for _ in range(BODY_FLIPS)]
    bits += range(8 * start, 8 * (start + 56))  # salt and commitment, all of them
    found = ends(opener, sealed, bits)
    assert found.total() >= BODY_FLIPS
    assert set(found) == {"WrongKey", "ContainerCorrupt"}
    assert found["WrongKey"] >= 8 * 56


def test_an_opener_that_checks_nothing_is_found_out() -> None:
    assert ends(lambda data: data, b"some bytes", [0, 8, 79]) == {"opened": 3}


def test_two_verifiers_agree_on_every_bit_of_a_receipt(second: ModuleType) -> None:
    content = {"_type": receipt.STATEMENT_TYPE, "subject": [], "predicateType": receipt.PREDICATE_TYPE,
               "predicate": {"erasure": "e"}}  # fmt: skip
    public = Ed25519PrivateKey.from_private_bytes(KEY).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    data = receipt.sign(content, KEY)
    (keyid,) = (one["keyid"] for one in json.loads(data)["signatures"])
    hint = range(8 * data.index(keyid.encode()), 8 * (data.index(keyid.encode()) + len(keyid)))
    accepted = []
    for bit in range(8 * len(data)):
        changed = flipped(data, bit)
        ours = verdict(receipt.verify, changed, pem, VerificationFailed)
        assert ours == verdict(second.check, changed, pem, second.NotVerified), bit
        assert ours in (None, content), bit
        accepted += [bit] if ours else []
    # What may change is what nobody signed: the hint of a key and its name, and spare bits at the end of base64.
    assert len([bit for bit in accepted if bit not in hint]) < 100


def verdict(check: Callable[[bytes, bytes], object], data: bytes, pem: bytes, refusal: type[Exception]) -> object:
    """The statement, or None where it does not verify."""
    try:
        return check(data, pem)
    except refusal:
        return None
