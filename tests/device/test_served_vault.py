"""The vault as the vault process serves it: what it gives out, and what an erasure does to it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmem import erasure
from fedmem.device.served_vault import ServedVault
from fedmem.errors import Busy, Refused, VerificationFailed
from fedmem.policy.policy import Policy
from fedmem.vault.store import egress_log as egress
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.vault import NewRecord, Vault

PUBLIC = ["Bern lies on the Aare.", "The plum tree flowers in April."]
CANARY = "zebrafinch-4711 of the patient"


VECTOR = np.full(128, 0.5, np.float32)
CONSENT = """
schema = "fedmem.policy/1"
name = "consent"
[federation]
allow_no_dp = true
"""


Opened = Callable[[], Vault]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A policy that allows plans without noise, as the plan of these tests is."""
    file = tmp_path_factory.mktemp("policy") / "consent.toml"
    file.write_text(CONSENT)
    return Policy.load(file)


def record(text: str, topic: str | None) -> NewRecord:
    return NewRecord(text, topic, (0,), VECTOR, "r" * 64)


def make(root: Path, private: list[tuple[str, str]] = ()) -> Opened:
    """A vault with the public records, private ones between them; how it is opened for reading."""
    with Vault.create(root, subject="ada") as vault:
        vault.add_records([record(PUBLIC[0], None), *(record(*one) for one in private), record(PUBLIC[1], None)])
    return lambda: Vault.open(root, subject="ada", write=False)


def few(vault_root: Path) -> Opened:
    return make(vault_root, [(CANARY, "health")])


def test_records_that_a_stricter_policy_takes_back_are_not_handed_out(tmp_path: Path, policy: Policy) -> None:
    opened = make(tmp_path / "vault")
    with Vault.open(tmp_path / "vault", subject="ada") as vault:
        vault.add_records([record("My diagnosis is diabetes; the doctor prescribed insulin.", None)])
    with ServedVault(opened, policy) as served:
        assert served.shareable()[0] == PUBLIC


def test_a_vault_that_does_not_open_or_has_a_changed_ledger_is_not_served(tmp_path: Path, policy: Policy) -> None:
    opened = few(tmp_path / "vault")
    with pytest.raises(Refused):
        ServedVault(lambda: Vault.open(tmp_path / "vault", subject="eve", write=False), policy)
    (tmp_path / "vault" / egress.NAME).write_bytes(b"{}\n")
    with pytest.raises(VerificationFailed):
        ServedVault(opened, policy)


def erased(root: Path, scope: erasure.Scope) -> erasure.Outcome:
    with Vault.open(root, subject="ada") as vault:
        planned = erasure.plan(vault, scope)
        return erasure.execute(vault, planned, planned.digest)


def test_records_come_in_their_order_with_their_ids_and_without_private_ones(tmp_path: Path, policy: Policy) -> None:
    opened = few(tmp_path / "vault")
    with ServedVault(opened, policy) as served, opened() as vault:
        texts, ids = served.shareable()
        assert texts == PUBLIC
        assert ids == {record.id for record in vault.records(None)}
        assert served.holds(ids)
        assert served.holds(frozenset())
        assert not served.holds(ids | {"an unknown id"})


def test_after_an_erasure_it_is_opened_again_without_the_record(tmp_path: Path, policy: Policy) -> None:
    opened = few(tmp_path / "vault")
    with opened() as vault:
        first, _ = vault.records(None)
    with ServedVault(opened, policy, patience=5.0) as served:
        before, (_, ids) = served.renew(), served.shareable()
        assert served.renew() == before  # nothing was erased
        assert erased(tmp_path / "vault", erasure.Scope.record(first.id)).state == "completed"
        assert served.renew() == before + 1
        assert served.shareable()[0] == PUBLIC[1:]
        assert not served.holds(ids)


def test_where_the_vault_cannot_be_opened_again_requests_are_busy_in_time(tmp_path: Path, policy: Policy) -> None:
    opened, is_erasing = few(tmp_path / "vault"), list[bool]()

    def reopen() -> Vault:
        if is_erasing:
            raise Busy("An erasure runs.")
        return opened()

    with ServedVault(reopen, policy, patience=0.1) as served:
        is_erasing.append(True)
        assert erased(tmp_path / "vault", erasure.Scope.topic("health")).state == "completed"
        with pytest.raises(Busy):
            served.shareable()
        served.settle()  # nothing to save while it is closed
        is_erasing.clear()
        assert served.shareable()[0] == PUBLIC


def test_a_line_is_in_the_account_of_the_next_opening(tmp_path: Path, policy: Policy) -> None:
    opened = few(tmp_path / "vault")
    line = EgressEntry("train.anchor", 1, 12, "00", rounds=1)  # a message without a spend is not bounded
    with ServedVault(opened, policy) as served:
        assert served.account().epsilon() == 0.0
        served.enter(line)
        served.settle()
    with ServedVault(opened, policy) as served:
        assert served.account().epsilon() == float("inf")
