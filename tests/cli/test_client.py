"""client train, status, pause and cancel, and block migrate, on a real vault and a release that takes milliseconds."""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from fedmem.cli import client as module
from fedmem.cli.client import parse_deadline, parse_size
from fedmem.cli.main import main
from fedmem.device import session_lock as trainer
from fedmem.device.learning import LearnSettings
from fedmem.device.training_sessions import train
from fedmem.errors import UsageError
from fedmem.policy.policy import Policy
from fedmem.privacy.plan import PrivacyPlan
from fedmem.sdk.places import vault_root
from fedmem.training.release import Release
from fedmem.vault.vault import NewRecord, Vault

_spec = importlib.util.spec_from_file_location("sdk_fixtures", Path(__file__).parents[1] / "sdk" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

release = _fixtures.release
Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")
PASSPHRASE = "tulip-4711-secret"


def fill(release: Release, **options: Any) -> None:
    vectors = torch.eye(128).numpy()
    with Vault.create(vault_root("ana"), subject="ana", **options) as vault:
        vault.add_records(
            [NewRecord(f"note {i} of the doctor", "health", (0, i), vectors[i], release.digest) for i in range(3)]
        )


def opened(**options: Any) -> Vault:
    return Vault.open(vault_root("ana"), subject="ana", **options)


def spends(**options: Any) -> int:
    with opened(write=False, **options) as vault:
        return sum(event.kind == "spend" for event in vault.ledger.events())


def test_a_deadline_pauses_it_and_the_same_command_goes_on(fedmem: Call, release: Release) -> None:
    fill(release)
    words = ("client", "train", "health", *ANA, "--release", str(release.root))
    result, envelope = fedmem(*words, "--epsilon", "2", "--deadline", "0.3s")  # gone before the first step
    data = envelope["data"]
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.client.train/1"), result.stderr
    assert (data["state"], data["step"], data["steps"], data["block"]) == ("paused", 1, 80, None)
    (one,) = fedmem("client", "status", *ANA)[1]["data"]["trainings"]
    assert (one["run"], one["state"], one["step"]) == (data["run"], "paused", 1)
    result, envelope = fedmem(*words)  # without --epsilon: on the plan of the run that is open
    assert (envelope["data"]["state"], envelope["data"]["run"]) == ("done", data["run"]), result.stderr
    assert spends() == 1
    (one,) = fedmem("client", "status", *ANA)[1]["data"]["trainings"]
    assert (one["state"], one["block"], one["topic"]) == ("done", envelope["data"]["block"], "health")


def begun_and_paused(release: Release, **options: Any) -> None:
    """A long training that is charged and has taken one step, on a plan that needs no calibration."""
    plan = PrivacyPlan(0.5, 5_000, clip=0.1, noise_multiplier=200.0, divisor=4.0, delta=1e-5, record_cap=100)
    with opened(write=True, **options) as vault:
        train(vault, release, Policy.load().topics["health"], plan, settings=LearnSettings(4, 16), stop=lambda: True)


def test_the_background_takes_its_passphrase_by_a_pipe_and_can_be_paused_and_cancelled(
    fedmem: Call, release: Release, tmp_path: Path
) -> None:
    fill(release, keystore="passphrase", ask=lambda: PASSPHRASE)
    begun_and_paused(release, ask=lambda: PASSPHRASE)
    secret = tmp_path / "secret"
    secret.write_text(PASSPHRASE)
    secret.chmod(0o600)
    ana = (*ANA, "--passphrase-file", str(secret))
    words = ("client", "train", "health", *ana, "--release", str(release.root), "--memory", "2GB", "--background")
    result, envelope = fedmem(*words)
    assert (result.exit_code, envelope["data"]["state"]) == (0, "running"), result.stderr
    told = json.loads((vault_root("ana") / "training" / "trainer").read_bytes())
    for name in ("cmdline", "environ"):
        place = Path(f"/proc/{told['pid']}/{name}")
        assert not place.exists() or PASSPHRASE.encode() not in place.read_bytes()
    assert fedmem("client", "status", *ana)[1]["data"]["trainings"][0]["state"] == "running"
    assert fedmem(*words)[0].exit_code == 7
    result, envelope = fedmem("client", "pause", *ana)
    assert (result.exit_code, envelope["data"]["state"]) == (0, "paused"), result.stderr
    assert envelope["data"]["step"] >= 2
    assert os.waitstatus_to_exitcode(os.waitpid(told["pid"], 0)[1]) == 0
    assert fedmem("client", "pause", *ana)[0].exit_code == 3
    assert fedmem("client", "cancel", "health", *ana)[0].exit_code == 4  # not confirmed
    assert fedmem("client", "cancel", "health", *ana, "--dry-run")[1]["data"]["state"] == "paused"
    result, envelope = fedmem("client", "cancel", "health", *ana, "--yes")
    assert (result.exit_code, envelope["data"]["state"]) == (0, "failed")
    assert spends(ask=lambda: PASSPHRASE) == 1


STOPPED = """
import sys
from pathlib import Path
from fedmem.errors import BudgetExceeded
from fedmem.device.session_lock import SessionLock
with SessionLock(Path(sys.argv[1])):
    raise BudgetExceeded("It would pass the budget.")
"""


@pytest.mark.parametrize(("code", "expected"), [(STOPPED, ("BudgetExceeded", 4)), ("raise SystemExit(9)", ("", 9))])
def test_what_the_background_fails_with_is_told_by_the_one_who_started_it(
    fedmem: Call, release: Release, monkeypatch: pytest.MonkeyPatch, code: str, expected: tuple[str, int]
) -> None:
    fill(release)
    command = [sys.executable, "-c", code, str(vault_root("ana"))]
    monkeypatch.setattr(module, "spawn_command", lambda *_: os.posix_spawn(command[0], command, os.environ))
    result, envelope = fedmem("client", "train", "health", *ANA, "--release", str(release.root), "--background")
    assert (result.exit_code, envelope["data"]["exit_code"]) == (expected[1], expected[1])
    assert envelope["data"]["error"] == (expected[0] or "FedmemError")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_pauses_it(fedmem: Call, release: Release, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fill(release)
    write_status = trainer.SessionLock.write_status

    def signalled(self: trainer.SessionLock, run: str = "", step: int = 0, steps: int = 0) -> None:
        write_status(self, run, step, steps)
        if step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(trainer.SessionLock, "write_status", signalled)
    before = signal.getsignal(number)
    result, envelope = fedmem("client", "train", "health", *ANA, "--release", str(release.root), "--epsilon", "2")
    assert (result.exit_code, envelope["data"]["state"], envelope["data"]["step"]) == (0, "paused", 2)
    assert "continues from there" in result.stderr
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--deadline", "0s"), 4),
        (("--deadline", "2020-01-01T00:00+00:00"), 4),
        (("--deadline", "soon"), 2),
        (("--memory", "much"), 2),
        (("--memory", "10MB"), 4),
        (("--epsilon", "0"), 2),
        (("--epsilon", "nan"), 2),
        (("--epsilon", "9"), 4),
    ],
)
def test_bad_input(fedmem: Call, release: Release, words: tuple[str, ...], code: int) -> None:
    fill(release)
    result, envelope = fedmem("client", "train", "health", *ANA, "--release", str(release.root), *words)
    assert (result.exit_code, envelope["schema"]) == (code, "fedmem.error/1")
    assert spends() == 0


def test_unknown_names(fedmem: Call, release: Release, tmp_path: Path) -> None:
    fill(release)
    assert fedmem("client", "train", "no-topic", *ANA, "--release", str(release.root))[0].exit_code == 3
    assert fedmem("client", "train", "health", *ANA, "--release", str(tmp_path / "none"))[0].exit_code in (2, 3)
    assert fedmem("client", "cancel", "health", *ANA, "--yes")[0].exit_code == 3
    assert fedmem("block", "migrate", "health", *ANA, "--release", str(release.root))[0].exit_code == 3


def test_tables_for_people(release: Release) -> None:
    fill(release)
    result = CliRunner().invoke(main, ["client", "status", *ANA])
    assert (result.exit_code, result.stderr) == (0, "No trainings yet.\n")


def test_limits_as_people_write_them() -> None:
    assert (parse_size("800MB"), parse_size("1.5gb"), parse_size(None), parse_deadline(None)) == (
        800_000_000,
        1_500_000_000,
        None,
        None,
    )
    found = parse_deadline("10m")
    assert found is not None
    assert 590 < (found - datetime.now(UTC)).total_seconds() <= 600
    assert parse_deadline("2026-11-22T06:00+01:00") == datetime(2026, 11, 22, 5, tzinfo=UTC)
    assert parse_deadline("2026-11-22T06:00").tzinfo is not None
    for wrong in ("", "m", "1e999h", "10 minutes ago"):
        with pytest.raises(UsageError):
            parse_deadline(wrong)
    for wrong in ("", "MB", "5", "1TB", "infGB"):
        with pytest.raises(UsageError):
            parse_size(wrong)
