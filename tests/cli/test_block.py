"""block migrate on a real vault, with two releases that take milliseconds."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedmem.device.learning import LearnSettings, learn_topic
from fedmem.policy.policy import Policy
from fedmem.privacy.plan import PrivacyPlan
from fedmem.sdk.places import vault_root
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, NewRecord, Vault


def _loaded(name: str) -> ModuleType:
    """A file of tests/sdk; importlib mode has no imports between folders."""
    spec = importlib.util.spec_from_file_location(f"sdk_{name}", Path(__file__).parents[1] / "sdk" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release, newer = _loaded("conftest").release, _loaded("test_migrate").newer
Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")
PLAN = PrivacyPlan(sampling_rate=0.5, steps=3, clip=0.1, noise_multiplier=4.0, divisor=4.0, delta=1e-5, record_cap=100)


@pytest.fixture
def learned(release: Release) -> BlockInfo:
    """Ana's vault with a health block on the first release, closed again."""
    with Vault.create(vault_root("ana"), subject="ana") as vault:
        vector = torch.ones(128).numpy()
        vault.add_records([NewRecord("a visit to the doctor", "health", (0, 1), vector, release.digest)])
        topic = Policy.load().topics["health"]
        return learn_topic(vault, release, topic, PLAN, settings=LearnSettings(width=4, length=16))


def test_a_block_moves_and_the_old_one_stays(
    fedmem: Call, learned: BlockInfo, newer: Release, release: Release
) -> None:
    words = ("block", "migrate", "health", *ANA, "--release", str(newer.root))
    result, envelope = fedmem(*words)
    data = envelope["data"]
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.block.migrate/1"), result.stderr
    assert (data["state"], data["old_block"], data["old_release"]) == ("done", learned.id, release.digest)
    assert data["release"] == newer.digest
    assert "The old block stays" in result.stderr
    shown = fedmem("block", "list", *ANA)[1]["data"]["blocks"]
    assert [one["id"] for one in shown] == [learned.id, data["block"]]
    result, envelope = fedmem(*words)  # it is there already
    assert (result.exit_code, envelope["data"]["error"]) == (4, "Refused")


def test_over_budget_it_is_refused(fedmem: Call, learned: BlockInfo, newer: Release, tmp_path: Path) -> None:
    policy = tmp_path / "tight.toml"
    found = Policy.load().topics["health"]
    text = (Path(__file__).parents[2] / "policies" / "default.toml").read_text()
    policy.write_text(text.replace(f"epsilon = {found.epsilon}", "epsilon = 0.4"))
    words = ("--release", str(newer.root), "--policy", str(policy))
    result, envelope = fedmem("block", "migrate", "health", *ANA, *words)
    assert (result.exit_code, envelope["data"]["error"]) == (4, "BudgetExceeded"), result.stderr
    with Vault.open(vault_root("ana"), subject="ana", write=False) as vault:
        assert [event.kind for event in vault.ledger.events()] == ["spend", "run_finished"]
