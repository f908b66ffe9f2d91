"""client run: what it refuses before anything is started. What it does is in tests/e2e/test_deployment.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmem.errors import NothingMatched, Refused, UsageError
from fedmem.vault.vault import BlockInfo

Call = Callable[..., tuple[Any, dict[str, Any]]]
TERMS = """
release = "abc"
parts = ["anchor"]
[plan]
population = 1
unsafe_no_dp = true
unsafe_reason = "a test"
[rounds]
[local]
length = 48
"""


@pytest.fixture
def words(block: BlockInfo, tmp_path: Path) -> list[str]:
    (tmp_path / "terms.toml").write_text(TERMS)
    (tmp_path / "release").mkdir()
    release, terms = str(tmp_path / "release"), str(tmp_path / "terms.toml")
    return ["client", "run", "--subject", "ana", "--release", release, "--terms", terms]


def test_it_needs_a_superlink_or_an_operator(fedmem: Call, words: list[str]) -> None:
    result, data = fedmem(*words)
    assert (result.exit_code, "--superlink" in data["data"]["message"]) == (UsageError.exit_code, True)
    result, _ = fedmem(*words, "--superlink", "somewhere")
    assert result.exit_code == UsageError.exit_code


def test_a_vault_that_is_not_there(fedmem: Call, words: list[str]) -> None:
    words[3] = "eve"
    result, _ = fedmem(*words, "--no-supernode")
    assert result.exit_code == NothingMatched.exit_code


def test_terms_without_noise_and_without_a_reason(fedmem: Call, words: list[str]) -> None:
    Path(words[7]).write_text(TERMS.replace("true", "false"))
    result, _ = fedmem(*words, "--no-supernode")
    assert result.exit_code == Refused.exit_code


def test_a_folder_without_a_release_starts_nothing(fedmem: Call, words: list[str], home: Path) -> None:
    result, data = fedmem(*words, "--no-supernode")
    assert (result.exit_code, "holds no release" in data["data"]["message"]) == (NothingMatched.exit_code, True)
    assert not (home / "run").exists()
