"""The bytes of deleted notes that stay on disk, in fedmem's vault and in other stores.

Each store gets the same notes, text and vector, deletes them all by its own call, and says that it holds none. Then
every file of its folder is read: a note counts as found where its text, or any two neighbours of its vector, are still
there.

    counts("sqlite_wal", folder)     # {"open": 50, "closed": 0}
"""

import importlib.util
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedmem import erasure
from fedmem.erasure import Scope, residue
from fedmem.vault.vault import NewRecord, Vault

NOTES, WIDTH = 50, 64
Closing = Callable[[], None]
Store = Callable[[Path, list[str], np.ndarray], Closing]


def notes() -> tuple[list[str], np.ndarray]:
    """Return texts that are in no other file, and their vectors, float32 of unit length."""
    rng = np.random.default_rng(7)
    texts = [f"note {rng.bytes(8).hex()} about tablets, taken at {i} o'clock" for i in range(NOTES)]
    vectors_ND = rng.standard_normal((NOTES, WIDTH)).astype(np.float32)
    return texts, vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def found(folder: Path) -> int:
    """Return the number of notes that are in a file below `folder`."""
    texts, vectors_ND = notes()
    needles: dict[str, bytes] = {}
    for number, (text, vector_D) in enumerate(zip(texts, vectors_ND, strict=True)):
        needles[f"{number}"] = text.encode()
        needles |= residue.windows(vector_D.tobytes(), f"{number}")
    return len({hit.needle.split()[0] for hit in residue.scan(folder, needles)})


def counts(name: str, folder: Path) -> dict[str, int]:
    """Return notes that are found after their deletion, while the store is open and once it is closed."""
    folder.mkdir(parents=True)
    close = STORES[name](folder, *notes())
    still_open = found(folder)
    close()
    return {"open": still_open, "closed": found(folder)}


def installed() -> list[str]:
    """Return the installed stores."""
    return [name for name in STORES if name not in NEEDS or importlib.util.find_spec(NEEDS[name]) is not None]


def fedmem(folder: Path, texts: list[str], vectors_ND: np.ndarray) -> Closing:
    """Store and delete the notes in a vault whose key slots are in the same folder. They are also rows of a block."""
    with home(folder / "home"):
        vault = Vault.create(folder / "v", subject="benchmark")
        records = [NewRecord(text, "health", (), vector, "r") for text, vector in zip(texts, vectors_ND, strict=True)]
        vault.add_records(records)
        run = vault.begin_run("health", "r", {}, "d", [], {"sigma": 1.0})
        vault.finish_run(run, "health", "r", vectors_ND.tobytes(), 1, 1, 1)
        if found(folder):
            raise RuntimeError("a note lies in the clear in a vault")
        planned = erasure.plan(vault, Scope.topic("health"))
        erasure.execute(vault, planned, planned.digest)
        _must_be_empty(vault.records("health"))
    return vault.close


def planted_copy(folder: Path, texts: list[str], vectors_ND: np.ndarray) -> Closing:
    """Do the same, with one note copied to a file beside the vault. The scan must find it."""
    close = fedmem(folder, texts, vectors_ND)
    (folder / "v.log").write_bytes(b"..." + vectors_ND[0, 5:9].tobytes() + b"...")
    return close


def sqlite_wal(folder: Path, texts: list[str], vectors_ND: np.ndarray) -> Closing:
    """Store and delete the notes in SQLite with its log."""
    connection = sqlite3.connect(folder / "memory.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT, vector BLOB)")
    for number, (text, vector_D) in enumerate(zip(texts, vectors_ND, strict=True)):
        connection.execute("INSERT INTO notes VALUES (?, ?, ?)", (number, text, vector_D.tobytes()))
    connection.execute("DELETE FROM notes")
    _must_be_empty(connection.execute("SELECT * FROM notes").fetchall())
    return connection.close


def chroma(folder: Path, texts: list[str], vectors_ND: np.ndarray) -> Closing:
    """Store and delete the notes in Chroma's local store."""
    import chromadb

    client = chromadb.PersistentClient(str(folder), chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection("notes", embedding_function=None)
    ids = [str(number) for number in range(len(texts))]
    collection.add(ids=ids, documents=texts, embeddings=vectors_ND)
    collection.delete(ids=ids)
    _must_be_empty(collection.get()["ids"])
    return lambda: None


def mem0(folder: Path, texts: list[str], vectors_ND: np.ndarray) -> Closing:
    """Store and delete the notes in mem0, with its history. Vectors are given, so no model is needed."""
    os.environ["MEM0_TELEMETRY"] = "False"
    os.environ["MEM0_DIR"] = str(folder / "mem0")
    logging.getLogger("mem0").setLevel(logging.ERROR)
    from mem0 import Memory

    unused: dict[str, Any] = {"provider": "openai", "config": {"api_key": "none, and nobody is asked"}}
    vectors = {
        "collection_name": "notes",
        "path": str(folder / "vectors"),
        "embedding_model_dims": WIDTH,
        "on_disk": True,
    }
    memory = Memory.from_config(
        {
            "llm": unused,
            "embedder": unused,
            "vector_store": {"provider": "qdrant", "config": vectors},
            "history_db_path": str(folder / "history.db"),
        }
    )
    memory.embedding_model = _Given(dict(zip(texts, vectors_ND.tolist(), strict=True)))
    for text in texts:
        memory.add(text, user_id="benchmark", infer=False)
    memory.delete_all(user_id="benchmark")
    _must_be_empty(memory.get_all(filters={"user_id": "benchmark"})["results"])
    return lambda: None


class _Given:
    """An embedder that knows the vectors of the notes."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self._vectors = vectors

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return self._vectors[text]


def _must_be_empty(listed: Sized) -> None:
    if len(listed):
        raise RuntimeError("the store did not delete the notes")


STORES: dict[str, Store] = {
    "fedmem": fedmem,
    "planted_copy": planted_copy,
    "sqlite_wal": sqlite_wal,
    "chroma": chroma,
    "mem0": mem0,
}
NEEDS = {"chroma": "chromadb", "mem0": "mem0"}


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """Set FEDMEM_HOME inside the block."""
    before = os.environ.get("FEDMEM_HOME")
    os.environ["FEDMEM_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("FEDMEM_HOME")
        if before is not None:
            os.environ["FEDMEM_HOME"] = before
