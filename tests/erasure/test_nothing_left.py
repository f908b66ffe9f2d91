"""After an erasure nothing is left: in files, temporaries, shared memory, logs, receipts, core files, old copies (I4).

One test lives through it in a process of its own and looks from outside; the other tries every key that still exists.
"""

import base64
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmem import erasure
from fedmem.erasure import Scope, residue
from fedmem.erasure.residue import ResidueHit, scan
from fedmem.errors import FedmemError, StorageError, VerificationFailed
from fedmem.vault.crypto import container
from fedmem.vault.crypto.passphrase import stretch
from fedmem.vault.vault import Vault

LIFE = """
import json, logging, sys, tempfile
import numpy as np
from pathlib import Path
from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.vault.vault import NewRecord, Vault

def meet(**facts):
    print(json.dumps(facts), flush=True)
    return sys.stdin.readline().rstrip("\\n")

root = Path(sys.argv[1])
logging.basicConfig(filename=root.parent / "app.log", level=logging.DEBUG)
told = json.loads(meet())
vector = np.array(told["vector"], np.float32)
rows = np.random.default_rng(told["seed"]).standard_normal(2048).astype(np.float32).tobytes()
vault = Vault.create(root, subject="alice", keystore="passphrase", ask=lambda: told["passphrase"])
vault.add_records([NewRecord(told["text"], told["topic"], (1, 2), vector, "r") for _ in range(5)])
for plan in ({"steps": 1}, {"steps": 2}):
    run = vault.begin_run(told["topic"], "r", plan, "digest", [], {"sigma": 1.0})
vault.finish_run(run, told["topic"], "r", rows, 2, 4, 85)
vault.search(vector, 1)
vault.add_records([NewRecord("of another topic", "money", (3,), -vector, "r")])
with tempfile.NamedTemporaryFile() as scratch:
    scratch.write(b"nothing of a person")
    keys = {item: key.hex() for item, key in vault.core.table.keys.items()}
    meet(keys=keys, epoch=vault.core.keystore.load("epoch-%d" % vault.core.table.epoch).hex(),
         mine=sorted(vault.ids_of(told["topic"])), run=run.key.hex())
planned = erasure.plan(vault, Scope.topic(told["topic"]))
outcome = erasure.execute(vault, planned, planned.digest)
meet(clean=erasure.verify(vault, outcome.id, deep=True).is_clean, receipt=str(outcome.receipt_path))
vault.close()
"""
AFTERWARDS = """
import json, sys
from fedmem.vault.vault import ALL, Vault
passphrase = sys.stdin.readline().rstrip("\\n")
with Vault.open(sys.argv[1], subject="alice", ask=lambda: passphrase) as vault:
    print(json.dumps({"records": len(vault.records(ALL)), "blocks": len(vault.blocks())}), flush=True)
    sys.stdin.readline()
"""


class Life:
    """A process that lives with a vault, stopped where it waits for a line."""

    def __init__(self, base: Path, code: str) -> None:
        (base / "tmp").mkdir(exist_ok=True)
        told = {"FEDMEM_HOME": str(base / "home"), "TMPDIR": str(base / "tmp"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, base / "v"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | told
        )
        self.pid = self._process.pid

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def tell(self, line: str) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Let it end."""
        self._process.communicate("\n", timeout=30)
        assert self._process.returncode == 0


def spellings(name: str, text: str) -> dict[str, bytes]:
    """A text as it could lie in a file."""
    found = {name: text.encode(), f"{name}, utf-16": text.encode("utf-16-le")}
    return found | {
        f"{name}, base64": base64.b64encode(text.encode())[:-4],
        f"{name}, hex": text.encode().hex().encode(),
    }


def everywhere(base: Path, before: set[str], needles: dict[str, bytes]) -> list[ResidueHit]:
    """Hits below `base` (root, slots, temporaries, log, receipts) and in what is new in shared memory."""
    shared = Path("/dev/shm")
    new = sorted(set(os.listdir(shared)) - before) if shared.is_dir() else []
    hits = scan(base, needles)
    for name in new:
        with contextlib.suppress(StorageError, NotADirectoryError):  # of another test, and gone again
            hits += scan(shared / name, needles) if (shared / name).is_dir() else _in_one(shared / name, needles)
    return hits


def _in_one(file: Path, needles: dict[str, bytes]) -> list[ResidueHit]:
    with contextlib.suppress(OSError):
        data = file.read_bytes()
        return [ResidueHit(str(file), name) for name, needle in needles.items() if needle in data]
    return []


def core_of(pid: int, file: Path) -> None:
    """The writable memory of a process as a core file holds it. Skips the test where it may not be read."""
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory, file.open("wb") as core:
            for line in maps:
                span, rights, *_ = line.split()
                start, stop = (int(edge, 16) for edge in span.split("-"))
                if not rights.startswith("rw") or "[v" in line:
                    continue
                with contextlib.suppress(OSError):  # a page that nobody has touched
                    memory.seek(start)
                    core.write(memory.read(stop - start))
    except (FileNotFoundError, PermissionError):
        pytest.skip("the memory of another process cannot be read here")


def test_of_an_erased_topic_nothing_is_left_in_any_file_log_receipt_or_core(tmp_path: Path) -> None:
    rng = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))
    told: dict[str, Any] = {name: f"canary-{name}-{rng.bytes(12).hex()}" for name in ("text", "topic", "passphrase")}
    vector = rng.standard_normal(16).astype(np.float32)
    told |= {"vector": vector.tolist(), "seed": int(rng.integers(2**60))}
    rows = np.random.default_rng(told["seed"]).standard_normal(2048).astype(np.float32).tobytes()
    shared = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    life = Life(tmp_path, LIFE)
    life.hear()
    life.tell(json.dumps(told))
    known = life.hear()

    clear = {
        name: value for key in ("text", "topic", "passphrase") for name, value in spellings(key, told[key]).items()
    }
    clear |= residue.windows(rows, "parameters") | residue.windows(vector.tobytes(), "vector")
    keys = {f"key {item}": key for item, key in known["keys"].items()} | {"epoch": known["epoch"], "run": known["run"]}
    clear |= {name: bytes.fromhex(key) for name, key in keys.items()}
    clear |= {f"{name}, hex": key.encode() for name, key in keys.items()}
    assert len(clear) > 2000
    # Before the erasure: sealed, and nowhere in the clear. Its keys are worth looking for in its ciphertext too.
    assert everywhere(tmp_path, shared, clear) == []
    sealed = wrapped(tmp_path / "v", tmp_path / "home", set(known["mine"]))
    assert {hit.needle for hit in scan(tmp_path, sealed)} == set(sealed)
    # A core file is a file like any other; the system writes none of this process.
    core_of(life.pid, tmp_path / "v" / "core")
    assert {"text", "topic", "passphrase", "epoch"} <= {
        hit.needle for hit in scan(tmp_path / "v", clear) if hit.file == "core"
    }
    (tmp_path / "v" / "core").unlink()
    limits = Path(f"/proc/{life.pid}/limits").read_text().splitlines()
    assert next(line.split()[4] for line in limits if line.startswith("Max core file size")) == "0"

    life.tell("erase")
    said = life.hear()
    assert said["clean"]
    assert everywhere(tmp_path, shared, clear | sealed) == []
    assert Path(said["receipt"]).is_file()
    life.end()
    assert everywhere(tmp_path, shared, clear | sealed) == []
    # Who opens the vault from now on has nothing of it in memory either, beside the passphrase and what remains.
    reader = Life(tmp_path, AFTERWARDS)
    reader.tell(told["passphrase"])
    assert reader.hear() == {"records": 1, "blocks": 0}
    core_of(reader.pid, tmp_path / "core")
    gone = {
        name for name in clear if name.split(",")[0] not in {"passphrase", *(f"key {item}" for item in kept(known))}
    }
    found = {hit.needle for hit in scan(tmp_path, {name: clear[name] for name in gone} | sealed) if hit.file == "core"}
    assert found == set()
    reader.end()
    # And the scan does look: two floats of the block, anywhere, are found.
    (tmp_path / "tmp" / "copy").write_bytes(b"..." + rows[400:408] + b"...")
    assert scan(tmp_path / "tmp", clear) == [ResidueHit("copy", "parameters 100")]


def kept(known: dict[str, Any]) -> set[str]:
    """Ids of the keys that stay: the other topic's and the ledger's."""
    return set(known["keys"]) - set(known["mine"])


def wrapped(root: Path, home: Path, mine: set[str]) -> dict[str, bytes]:
    """Pieces of every ciphertext that an erasure of `mine` must end: table, epoch slot, containers, cells."""
    found = {"table": (root / "table.fmk").read_bytes()[-200:]}
    found |= {f"slot {path.name}": path.read_bytes() for path in home.glob("slots/*/epoch-*")}
    found |= {
        f"block {path.stem}": path.read_bytes()[-300:] for path in (root / "blocks").iterdir() if path.stem in mine
    }
    with tempfile.TemporaryDirectory() as folder:
        for path in root.glob("vault.db*"):  # another process has it open
            shutil.copy(path, folder)
        with contextlib.closing(sqlite3.connect(Path(folder, "vault.db"))) as cells:
            for table in ("records", "blocks", "runs"):
                for item, cell in cells.execute(f"SELECT id, sealed FROM {table}"):
                    if item in mine:
                        found[f"cell {table} {item}"] = bytes(cell)[40:100]
    return found


PASSPHRASE = "correct horse battery"


def keys_that_exist(vault: Vault, slots: Path) -> list[bytes]:
    """Every secret that can be had from the vault, its keystore, its slots and the passphrase."""
    facts = json.loads((vault.root / "vault.json").read_bytes())
    master = stretch(PASSPHRASE, bytes.fromhex(facts["kdf"]["salt"]))
    halves = [path.read_bytes() for path in slots.iterdir() if path.is_file()]
    names = {*(f"epoch-{n}" for n in range(20)), *(f"backup-{n}" for n in range(20)), "check", "device"}
    names |= {f"cover of {name}" for name in names}
    found = {half[at : at + 32] for half in halves for at in range(max(1, len(half) - 31))} | {master}
    for name in names:
        info = b"fedmem/slot/1\x00" + name.encode()
        found |= {HKDF(SHA512(), 32, salt=None, info=info).derive(master + half[:32]) for half in halves}
        with contextlib.suppress(FedmemError):
            found.add(vault.core.keystore.load(name))
    return sorted({*found, *vault.core.table.keys.values()})


def opens(key: bytes, data: bytes, identity: str) -> bool:
    with contextlib.suppress(VerificationFailed):
        container.unseal(key, data, identity=identity)
        return True
    return False


def test_no_key_that_exists_opens_the_erased_block_in_an_old_copy(vaults, home: Path, tmp_path: Path) -> None:
    vault = vaults.create(keystore="passphrase", ask=lambda: PASSPHRASE)
    vault.add_records(vaults.records(2))
    block = vaults.block(vault)
    vaults.block(vault, "topic-money", b"other rows")
    (slots,) = (home / "slots").iterdir()
    shutil.copytree(vault.root, tmp_path / "old")
    table, rows = (tmp_path / "old" / name for name in ("table.fmk", f"blocks/{block}.fmb"))
    identities = {table: f"keytable/{vault.id}", rows: vault.core.identity("block", block)}
    things = {path.name: (path.read_bytes(), identity) for path, identity in identities.items()}
    keys = keys_that_exist(vault, slots)
    # Before it, the same attempt opens both: it is the right attempt.
    assert all(any(opens(key, *thing) for key in keys) for thing in things.values())
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    erasure.execute(vault, planned, planned.digest)
    keys = keys_that_exist(vault, slots)
    assert len(keys) > 50
    assert [name for name, thing in things.items() for key in keys if opens(key, *thing)] == []
    # What was not erased opens as before, so the keys that exist are all there.
    other = vault.block("topic-money").id
    data = vault.core.block_file(other).read_bytes()
    assert any(opens(key, data, vault.core.identity("block", other)) for key in keys)
