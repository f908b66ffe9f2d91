"""The egress ledger as an app reads it."""

import time
from datetime import datetime
from pathlib import Path

import pytest

from fedmem.errors import VerificationFailed
from fedmem.federation import device_dp
from fedmem.federation.device_dp import DevicePlan
from fedmem.policy.policy import FederationLimits
from fedmem.sdk.client import Client
from fedmem.sdk.places import vault_root
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.vault import Vault

NOISY = DevicePlan(population=1000, sampling_rate=0.3, rounds=9, noise_multiplier=1.0, run="run-7")
FIXED = DevicePlan(population=1000, cohort_size=300, rounds=9, noise_multiplier=2.0, run="run-8")
UNSAFE = DevicePlan(population=4, rounds=9, unsafe_no_dp=True, unsafe_reason="a toy", run="run-9")


def entry(plan: DevicePlan, number: int) -> EgressEntry:
    spend = {} if plan.unsafe_no_dp else device_dp.spend(plan, rounds=1).to_dict()
    return EgressEntry("train.anchor", number, 4096, f"{number:064x}", plan.run, plan.digest(), spend, plan.delta)


@pytest.fixture
def times(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Three messages left, a day apart; the last one now."""
    moments = [time.time() - days * 86_400 for days in (2, 1, 0)]
    with Vault.create(vault_root("ana"), subject="ana") as vault:
        ledger = EgressLog(vault.core)
        for number, (plan, when) in enumerate(zip((NOISY, FIXED, UNSAFE), moments, strict=True), start=1):
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda when=when: when)
                ledger.enter(entry(plan, number))
            ledger.settle()
    return moments


def test_the_sdk_shows_the_same(times: list[float]) -> None:
    with Client.open("ana", write=False) as client:
        assert [one.round for one in client.egress.since()] == [1, 2, 3]
        assert [one.round for one in client.egress.since(datetime.fromtimestamp(times[2] - 60))] == [3]
        assert client.egress.since()[2].epsilon == float("inf")
        assert client.egress.complete()


def test_an_event_of_a_later_version_is_not_guessed(home: Path) -> None:
    with Vault.create(vault_root("ana"), subject="ana") as vault:
        EgressLog(vault.core).enter(EgressEntry("train.anchor", 1, 4, "00", spend={"mechanism": "later/9"}, delta=1e-5))
        with pytest.raises(VerificationFailed):
            Client(vault, None).egress.since()  # type: ignore[arg-type]


def test_the_account_composes_every_round_within_the_limits_given(times: list[float]) -> None:
    with Client.open("ana", write=False) as client:
        account = client.egress.lifetime()
        assert (account.epsilon, account.left, account.federations) == (float("inf"), 0.0, 3)
        limits = FederationLimits(epsilon=3.0, delta=1e-6)
        assert (client.egress.lifetime(limits).budget, client.egress.lifetime(limits).delta) == (3.0, 1e-6)


def test_a_shortened_ledger_shows_nothing(times: list[float]) -> None:
    log = vault_root("ana") / egress.NAME
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    with Client.open("ana", write=False) as client:
        for read in (client.egress.since, client.egress.lifetime):
            with pytest.raises(VerificationFailed):
                read()
