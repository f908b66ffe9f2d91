"""Write a data directory of this version for later ones: `python tests/vault/golden.py NAME`, once for a format.

golden/NAME.tar.gz is a whole FEDMEM_HOME: a vault with its slots, two topics of records, a block, a ledger, an erasure
and its receipt. golden/NAME.json says what is in it. Never written over: a reader that needs other bytes has lost
somebody's vault.
"""

import hashlib
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedmem import erasure
from fedmem.vault.vault import ALL, NewRecord, Vault

FOLDER = Path(__file__).parent / "golden"
SPEND = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 2.0, "steps": 10}
TEXTS = {"garden": ["The plum tree wants pruning.", "Beans go in after the frost."], "boat": ["The hull leaks aft."]}


def build(root: Path) -> None:
    """A vault at `root` that has lived a little."""
    vault = Vault.create(root, subject="alice", keystore="keyfile")
    for topic in [*TEXTS, "gone"]:
        texts = TEXTS.get(topic, ["Nobody reads this again."])
        vectors = np.random.default_rng(len(topic)).standard_normal((len(texts), 8)).astype(np.float32)
        vault.add_records([NewRecord(t, topic, (1, 2), v, "r") for t, v in zip(texts, vectors, strict=True)])
        ids = [record.id for record in vault.records(topic)]
        run = vault.begin_run(topic, "release-1", {"steps": 10}, "digest", ids, SPEND)
        vault.finish_run(run, topic, "release-1", topic.encode() * 100, 1, 2, 8)
    planned = erasure.plan(vault, erasure.Scope.topic("gone"))
    erasure.execute(vault, planned, planned.digest)
    vault.close()


def contents(vault: Vault) -> dict[str, Any]:
    """What the ordinary path shows, as JSON."""
    blocks = {block.id: hashlib.sha256(vault.block_rows(block.id)).hexdigest() for block in vault.blocks()}
    return {
        "id": vault.id,
        "generation": vault.generation,
        "records": {record.id: [record.text, record.topic, list(record.path)] for record in vault.records(ALL)},
        "blocks": blocks,
        "events": [[event.kind, event.payload] for event in vault.ledger.events()],
        "head": vault.ledger.verify(),
        "erasures": [[one.id, one.state, one.counts] for one in erasure.status(vault)],
    }


def main(name: str) -> None:
    """Write the directory and what it holds. Raises FileExistsError where there is one of this name."""
    with tempfile.TemporaryDirectory() as folder, (FOLDER / f"{name}.json").open("x", encoding="utf-8") as told:
        os.environ["FEDMEM_HOME"] = str(Path(folder) / "home")
        root = Path(folder) / "home" / "vaults" / "v"
        root.parent.mkdir(parents=True)
        build(root)
        with Vault.open(root, subject="alice", write=False) as vault:
            told.write(json.dumps(contents(vault), indent=1, sort_keys=True) + "\n")
        with tarfile.open(FOLDER / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(Path(folder) / "home", arcname="home", filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    main(sys.argv[1])
