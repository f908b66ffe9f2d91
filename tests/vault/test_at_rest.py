"""Ciphertext only at rest: nothing private is in any file, at any instant, temporaries included (I8)."""

import base64
import sqlite3
from pathlib import Path

import numpy as np

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.erasure.residue import scan
from fedmem.vault.vault import NewRecord

ROWS = b"rows-canary-51d2" * 40
DATA_DIGEST = "data-digest-canary"
RELEASE = "release-1"
# What each column may hold; a new column must be judged here.
COLUMNS = {
    "records": {"id": "id", "created": "time", "sealed": "ciphertext"},
    "blocks": {"id": "id", "state": "state", "created": "time", "sealed": "ciphertext"},
    "runs": {"id": "id", "key_id": "id", "block_id": "id", "state": "state", "created": "time", "sealed": "ciphertext"},
    "events": {"seq": "number", "digest": "digest", "sealed": "ciphertext"},
    "erasures": {"id": "id", "state": "state", "created": "time", "journal": "random ids"},
    "revision": {"id": "number", "number": "number", "table_serial": "ciphertext"},
    "copies": {"id": "id", "kind": "state", "generation": "number", "created": "time", "sealed": "ciphertext"},
}


def needles(vaults, vector: np.ndarray) -> dict[str, bytes]:
    """Everything private that the test puts in, in the shapes in which it could lie on a disk."""
    texts = {"text": vaults.CANARY, "topic": vaults.TOPIC, "rows": ROWS[:32].decode(), "data digest": DATA_DIGEST,
             "plan": "noise_multiplier_canary", "spend": "spend_canary", "subject": "alice-canary"}  # fmt: skip
    found = {name: text.encode() for name, text in texts.items()}
    found |= {f"{name}, base64": base64.b64encode(text.encode())[:-4] for name, text in texts.items()}
    found |= {f"{name}, utf-16": text.encode("utf-16-le") for name, text in texts.items()}
    return found | {"vector": vector.tobytes(), "path": b'"path":[77,88]'}


def life(vaults, vector: np.ndarray) -> None:
    """Everything a vault does."""
    from fedmem.vault.vault import Vault

    vault = Vault.create(vaults.base / "v", subject="alice-canary", files=vaults.faults)
    vaults.opened.append(vault)
    vault.add_records([NewRecord(vaults.CANARY, vaults.TOPIC, (77, 88), vector, RELEASE)] * 3)
    for plan in ({"noise_multiplier_canary": 1}, {"noise_multiplier_canary": 2}):
        run = vault.begin_run(vaults.TOPIC, RELEASE, plan, DATA_DIGEST, ["r"], {"spend_canary": 1.0})
    vault.finish_run(run, vaults.TOPIC, RELEASE, ROWS, 1, 2, 4)
    vault.begin_run(vaults.TOPIC, RELEASE, {}, DATA_DIGEST, [], {})
    vault.search(vector, 2)
    planned = erasure.plan(vault, Scope.block(vaults.TOPIC))
    erasure.execute(vault, planned, planned.digest)


def test_no_private_byte_is_in_any_file_at_any_instant(vaults, faults, home: Path) -> None:
    vector = np.linspace(0.1, 0.9, 8, dtype=np.float32)
    looking, looks = needles(vaults, vector), []

    def look(operation: str, path: Path) -> None:
        # `home` lies below the base: key slots are looked through as well.
        looks.append(operation)
        if (vaults.base / "v").exists():
            assert scan(vaults.base, looking) == [], operation

    faults.watch = look
    life(vaults, vector)
    look("end", vaults.base)
    assert {"rename", "fsync", "unlink", "overwrite", "fsync-folder"} <= set(looks)


def test_the_scan_would_find_each_of_them(vaults, tmp_path: Path) -> None:
    vector = np.linspace(0.1, 0.9, 8, dtype=np.float32)
    planted = needles(vaults, vector)
    (tmp_path / "leak").write_bytes(b"..".join(planted.values()))
    assert {hit.needle for hit in scan(tmp_path, planted)} == set(planted)


def test_columns_hold_ids_times_states_and_ciphertext(vaults) -> None:
    life(vaults, np.ones(8, np.float32))
    (vaults.base / "v").joinpath("vault.db")
    connection = sqlite3.connect(vaults.base / "v" / "vault.db")
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in tables}
    finally:
        connection.close()
    assert found == {name: list(columns) for name, columns in COLUMNS.items()}


def test_file_names_are_random(vaults) -> None:
    vault = vaults.create()
    ids = [vaults.block(vault) for _ in range(2)]
    names = sorted(path.stem for path in (vault.root / "blocks").iterdir())
    assert names == sorted(ids)
    assert all(len(bytes.fromhex(name)) == 16 for name in names)


def test_header_of_a_block_names_no_topic(vaults) -> None:
    from fedmem.vault.crypto import container

    vault = vaults.create()
    block = vaults.block(vault)
    header, _ = container.read_header(vault.core.block_file(block).read_bytes())
    assert header == {
        "kind": "block", "id": block, "vault": vault.id, "release": RELEASE, "version": 1,
        "spec": {"layers": 2, "width": 4, "d_model": 8},
    }  # fmt: skip


def test_equal_records_are_unlike_at_rest(vaults) -> None:
    vault = vaults.create()
    record = NewRecord(vaults.CANARY, None, (), np.ones(4, np.float32), RELEASE)
    vault.add_records([record, record])
    connection = sqlite3.connect(vault.root / "vault.db")
    one, two = (bytes(sealed) for (sealed,) in connection.execute("SELECT sealed FROM records"))
    connection.close()
    assert not any(one[i : i + 8] == two[i : i + 8] for i in range(0, len(one) - 8, 8))
