"""A home of its own, a vault with a health block and a note beside it, and a tiny anchor and bank."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save

from fedmem.cli.main import main
from fedmem.sdk.places import vault_root
from fedmem.vault.vault import BlockInfo, NewRecord, Vault

SECRET = "zebrafinch-4711"
TINY = ("--steps", "4", "--batch", "4", "--length", "48")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FEDMEM_HOME, empty and private to the test."""
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDMEM_RUNS", raising=False)
    return tmp_path / "home"


def fill(vault: Vault) -> BlockInfo:
    """Two health records with a block, one finance record."""
    texts = [(f"the dose of {SECRET}", "health"), ("another visit", "health"), ("the rent", "finance")]
    vector_D = np.ones(128, np.float32)
    vault.add_records([NewRecord(text, topic, (), vector_D, "r" * 64) for text, topic in texts])
    ids = [record.id for record in vault.records("health")]
    spend = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 2.0, "steps": 10}
    run = vault.begin_run("health", "r" * 64, {}, "00", ids, spend)
    rows_X = np.ones(2 * 3 * 4 * 8, np.float32)
    return vault.finish_run(run, "health", "r" * 64, save({"rows": rows_X}), 2, 4, 8)


@pytest.fixture
def block() -> BlockInfo:
    """The health block of ana's own vault, closed again."""
    with Vault.create(vault_root("ana"), subject="ana") as vault:
        return fill(vault)


def call(*words: str, **options: Any) -> tuple[Result, dict[str, Any]]:
    """Run one command with --json; the result and what the envelope holds."""
    result = CliRunner().invoke(main, [*words, "--json"], **options)
    return result, json.loads(result.stdout)


@pytest.fixture
def fedmem() -> Any:
    """`call`, for tests to use."""
    return call


def made(*words: Any) -> dict[str, Any]:
    """The data of a command that must end well."""
    result, envelope = call(*map(str, words))
    assert result.exit_code == 0, result.stderr
    assert envelope["schema"] == f"fedmem.{words[0]}.{words[1]}/1"
    return envelope["data"]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A corpus, an anchor of it, and a new bank."""
    from tests.coordinator.workplace import TEXTS

    root = tmp_path_factory.mktemp("work")
    corpus = root / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    made("anchor", "train", corpus, "--out", root / "anchor", "--preset", "nano", "--vocabulary", 300, *TINY)
    words = ("--branching", 3, "--widths", "4,2", "--placement", "ramp")
    built = made("bank", "build", corpus, "--anchor", root / "anchor", "--out", root / "bank", *words)
    return {"root": root, "corpus": corpus, "anchor": root / "anchor", "release": Path(built["folder"])}
