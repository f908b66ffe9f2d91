"""The format of the sealed key table: numbers in a public header, and facts and data keys in a sealed payload.

Invariants
- The public header holds numbers and random ids: epoch, generation (one more for each erasure), serial (one more for
  each write), and the key of the table sealed to each recovery kit.
- Topics, subject and data keys are in the payload only.

The payload is a length (4 bytes, big-endian), the facts as canonical JSON, and the rows. A row is a 16-byte id and a
32-byte key; rows are sorted by id.

>>> table = seal(bytes(32), "0" * 32, (1, 0, 1), {"subject": "ana"}, {"a" * 32: bytes(32)})
>>> unseal(bytes(32), "0" * 32, table)[:2]
((1, 0, 1), {'subject': 'ana'})
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

from fedmem.errors import VerificationFailed
from fedmem.storage.canonical import canonical_json
from fedmem.storage.private_memory import PrivateBuffer, Readable
from fedmem.vault.crypto import container, hpke

ID_BYTES, KEY_BYTES = 16, 32
ROW = ID_BYTES + KEY_BYTES
_LENGTH = struct.Struct(">I")
_NUMBERS = ("epoch", "generation", "serial")
Numbers = tuple[int, int, int]


def epoch_name(epoch: int) -> str:
    """Return the name of an epoch key in the keystore.

    Args:
        epoch: number of the epoch, from 1.
    """
    return f"epoch-{epoch}"


def backup_name(generation: int) -> str:
    """Return the name, in the keystore, of the key that opens the backups of a generation.

    Args:
        generation: the vault's generation, from 0.
    """
    return f"backup-{generation}"


def encode(facts: Mapping[str, Any], keys: Mapping[str, bytes]) -> PrivateBuffer:
    """Return the payload of a table, in a buffer that is overwritten when it is dropped.

    Args:
        facts: sealed facts that JSON can represent.
        keys: id (32 hex digits) -> 32-byte data key.
    """
    encoded_facts = canonical_json(dict(facts))
    start = _LENGTH.size + len(encoded_facts)
    payload = PrivateBuffer(start + ROW * len(keys))
    view = memoryview(payload)
    view[:start] = _LENGTH.pack(len(encoded_facts)) + encoded_facts
    for at, item in zip(range(start, len(payload), ROW), sorted(keys), strict=True):
        view[at : at + ID_BYTES], view[at + ID_BYTES : at + ROW] = bytes.fromhex(item), keys[item]
    return payload


def decode(payload: Readable) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the facts and keys of a payload that `encode` wrote.

    Args:
        payload: the opened payload of a table.

    Returns:
        Facts, and id (32 hex digits) -> 32-byte data key.

    Raises:
        VerificationFailed: its size is wrong.
    """
    start = _LENGTH.size + (_LENGTH.unpack_from(payload)[0] if len(payload) >= _LENGTH.size else 0)
    if start > len(payload) or (len(payload) - start) % ROW:
        raise VerificationFailed("The key table has a damaged payload. Restore the vault from a backup.")
    view = memoryview(payload)
    facts: dict[str, Any] = json.loads(bytes(view[_LENGTH.size : start]))
    rows = range(start, len(payload), ROW)  # each key is copied once: a slice of a row would leave a second copy
    return facts, {view[i : i + ID_BYTES].hex(): bytes(view[i + ID_BYTES : i + ROW]) for i in rows}


def seal(key: bytes, vault_id: str, numbers: Numbers, facts: Mapping[str, Any], rows: Mapping[str, bytes]) -> bytes:
    """Return a table sealed under `key`. Its header holds `key` sealed to each recovery kit in `facts["kits"]`.

    Guarantees
        The table opens with `key` or with the private key of one of these kits, and it is bound to the vault and to its
        numbers (see `container` and `hpke`).

    Args:
        key: the epoch key, or the key of the backups: 32 uniformly random bytes.
        vault_id: 32 hex digits.
        numbers: epoch, generation and serial.
        facts: sealed facts that JSON can represent; `kits` maps the id of each kit to its public key.
        rows: id (32 hex digits) -> 32-byte data key.

    Raises:
        UsageError: the header is too long, because there are too many kits.
    """
    header = {"kind": "keytable", "vault": vault_id, **dict(zip(_NUMBERS, numbers, strict=True))}
    kits = facts.get("kits", {})
    if kits:
        header["kits"] = {kit: hpke.seal_to(kits[kit], key, identity=f"{vault_id}/{kit}") for kit in kits}
    return container.seal(key, header, encode(facts, rows), identity=identity(vault_id))


def unseal(key: bytes, vault_id: str, data: bytes) -> tuple[Numbers, dict[str, Any], dict[str, bytes]]:
    """Open a sealed table and return (numbers, facts, rows).

    Guarantees
        A result is exactly what `seal` was given for this key and vault (see `container`).

    Args:
        key: the key that sealed it, 32 bytes.
        vault_id: 32 hex digits.
        data: the bytes of the table's file.

    Raises:
        VerificationFailed: another key or vault, or a damaged table. VersionMismatch: another format.
    """
    header, payload = container.unseal(key, data, identity=identity(vault_id))
    return (numbers_of(header), *decode(payload))


def identity(vault_id: str) -> str:
    """Return the identity that the table of a vault is bound to.

    Args:
        vault_id: 32 hex digits.
    """
    return f"keytable/{vault_id}"


def numbers_of(header: Mapping[str, Any]) -> Numbers:
    """Return (epoch, generation, serial) of a table's public header.

    Args:
        header: the header, as `container.read_header` returns it. It is not authenticated until the table is opened.

    Raises:
        ContainerCorrupt: they are missing, or no numbers from 0.
    """
    numbers = tuple(header.get(name) for name in _NUMBERS)
    if header.get("kind") != "keytable" or not all(type(n) is int and n >= 0 for n in numbers):
        raise container.ContainerCorrupt("The key table's header is damaged. Restore the vault from a backup.")
    return numbers  # type: ignore[return-value]
