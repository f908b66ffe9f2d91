"""Records alone: what goes with them, what is trained anew, and that a wish survives every cut."""

import contextlib
import time
from datetime import UTC, datetime, timedelta

import pytest

from fedmem import erasure
from fedmem.erasure import Scope, receipt
from fedmem.errors import BudgetExceeded, NothingMatched, PartialErasure, Refused, UsageError
from fedmem.vault.vault import ALL, RunRecord, Vault

OTHER = "topic-money"
PLAN = {"privacy": {"steps": 3}, "learning": {"width": 2}}


class Trainer:
    """Seals rows that name the records it saw; over budget on demand."""

    def __init__(self) -> None:
        self.refuses = False
        self.checked: list[erasure.Retraining] = []
        self.keys: list[bytes] = []

    def check(self, vault: Vault, wanted: erasure.Retraining) -> None:
        self.checked.append(wanted)
        if self.refuses:
            raise BudgetExceeded("Over budget.")

    def train(self, vault: Vault, wanted: RunRecord) -> str:
        self.check(vault, wanted)  # type: ignore[arg-type]
        return learn(vault, wanted.topic, wanted.plan, self.keys)


class Broken(Trainer):
    """Lets the erasure begin and cannot train afterwards."""

    def train(self, vault: Vault, wanted: RunRecord) -> str:
        raise BudgetExceeded("Over budget.")


def learn(vault: Vault, topic: str, plan: dict | None = None, keys: list[bytes] | None = None) -> str:
    """A block whose rows are the ids of the records that it learned."""
    ids = [record.id for record in vault.records(topic)]
    run = vault.begin_run(topic, "release-1", plan or PLAN, repr(ids), ids, {"sigma": 1.0})
    if keys is not None:
        keys.append(run.key)
    return vault.finish_run(run, topic, "release-1", " ".join(ids).encode(), 2, 4, 8).id


@pytest.fixture
def vault(vaults) -> Vault:
    """Two topics with a block each, and shareable records."""
    vault = vaults.create()
    vault.add_records(vaults.records(4) + vaults.records(2, topic=OTHER) + vaults.records(2, topic=None))
    learn(vault, vaults.TOPIC)
    learn(vault, OTHER)
    return vault


def ids(vault: Vault, topic: str | None) -> list[str]:
    return [record.id for record in vault.records(topic)]


def erase(vault: Vault, scope: Scope, blocks: erasure.Choice | None = None, trainer: Trainer | None = None):
    planned = erasure.plan(vault, scope, blocks=blocks)
    return erasure.execute(vault, planned, planned.digest, retrain=trainer)


def states(vault: Vault) -> list[tuple[str, str]]:
    return [(one.state, one.retraining) for one in erasure.status(vault)]


def said(vault: Vault, outcome) -> dict:
    return receipt.verify(outcome.receipt_path.read_bytes(), (vault.root / "device.pub").read_bytes())["predicate"]


def test_deleting_the_block_leaves_the_other_records(vault: Vault, vaults) -> None:
    first, *rest = ids(vault, vaults.TOPIC)
    old = vault.block(vaults.TOPIC).id
    outcome = erase(vault, Scope.record(first), "delete")
    assert ids(vault, vaults.TOPIC) == rest
    assert [block.topic for block in vault.blocks()] == [OTHER]
    assert said(vault, outcome)["blocks"] == [{"id": old, "outcome": "deleted"}]
    assert erasure.verify(vault, outcome.id, deep=True).is_clean
    assert states(vault) == [("completed", "")]


def test_retraining_never_sees_the_record_and_has_a_stream_of_its_own(vault: Vault, vaults) -> None:
    first, *rest = ids(vault, vaults.TOPIC)
    old, trainer = vault.block(vaults.TOPIC), Trainer()
    outcome = erase(vault, Scope.record(first), "retrain", trainer)
    new = vault.block(vaults.TOPIC)
    assert vault.block_rows(new.id).decode().split() == rest
    assert (new.id != old.id, outcome.retrained) == (True, (new.id,))
    (row,) = said(vault, outcome)["blocks"]
    assert (row["id"], row["successor"], row["run"]) == (old.id, new.id, new.run_id)
    assert trainer.checked[0].records == tuple(rest)
    assert trainer.checked[0].plan == PLAN
    spends = [event.payload for event in vault.ledger.events() if event.kind == "spend"]
    assert [spend["run"] for spend in spends][-1] == new.run_id  # a charge of its own
    assert first not in spends[-1]["records"]
    assert len(set(trainer.keys)) == len(trainer.keys) == 1
    assert states(vault) == [("completed", "done")]


def test_a_topic_without_a_choice_is_refused_before_anything(vault: Vault, vaults) -> None:
    with pytest.raises(UsageError, match="Choose"):
        erasure.plan(vault, Scope.record(ids(vault, vaults.TOPIC)[0]))
    with pytest.raises(UsageError):
        erasure.plan(vault, Scope.topic(vaults.TOPIC), blocks="delete")
    with pytest.raises(UsageError):
        erasure.plan(vault, Scope.record("x"), blocks="perhaps")  # type: ignore[arg-type]


def test_over_budget_nothing_is_destroyed(vault: Vault, vaults) -> None:
    trainer = Trainer()
    trainer.refuses = True
    planned = erasure.plan(vault, Scope.record(ids(vault, vaults.TOPIC)[0]), blocks="retrain")
    with pytest.raises(BudgetExceeded):
        erasure.execute(vault, planned, planned.digest, retrain=trainer)
    with pytest.raises(Refused, match="release"):
        erasure.execute(vault, planned, planned.digest)
    assert erasure.status(vault) == []
    assert len(ids(vault, vaults.TOPIC)) == 4
    assert len(vault.blocks()) == 2


def test_a_block_that_never_saw_the_record_stays(vault: Vault, vaults) -> None:
    (late,) = vault.add_records(vaults.records(1))
    blocks = vault.blocks()
    planned = erasure.plan(vault, Scope.record(late))
    assert planned.counts == {"key": 1, "record": 1}
    assert erasure.execute(vault, planned, planned.digest).state == "completed"
    assert vault.blocks() == blocks


def test_a_block_whose_lineage_is_lost_counts_as_having_seen_it(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    vaults.block(vault)  # sealed without a list of records
    planned = erasure.plan(vault, Scope.record(ids(vault, vaults.TOPIC)[0]), blocks="delete")
    assert len(planned.deleted) == 1


def test_older_versions_go_too_and_failed_runs_that_saw_it(vault: Vault, vaults) -> None:
    first = ids(vault, vaults.TOPIC)[0]
    learn(vault, vaults.TOPIC)
    vault.fail_run(vault.begin_run(vaults.TOPIC, "release-2", {}, "d", [first], {}))
    planned = erasure.plan(vault, Scope.record(first), blocks="delete")
    assert (planned.counts["block"], planned.counts["run"]) == (2, 3)
    erasure.execute(vault, planned, planned.digest)
    assert vault.runs(vaults.TOPIC) == vault.blocks_of(vaults.TOPIC) == []


def test_records_of_several_topics_and_shareable_ones(vault: Vault, vaults) -> None:
    scope = Scope.record(ids(vault, vaults.TOPIC)[0], ids(vault, OTHER)[0], ids(vault, None)[0])
    outcome = erase(vault, scope, "retrain", Trainer())
    assert [len(ids(vault, topic)) for topic in (vaults.TOPIC, OTHER, None)] == [3, 1, 1]
    assert len(outcome.retrained) == 2
    assert said(vault, outcome)["residual_epsilon"]["epsilon"] is None  # a shareable one may have been shared


def test_without_records_there_is_nothing_to_train(vault: Vault, vaults) -> None:
    outcome = erase(vault, Scope.record(*ids(vault, OTHER)), "retrain", Trainer())
    assert outcome.retrained == ()
    assert [row["outcome"] for row in said(vault, outcome)["blocks"]] == ["deleted"]
    assert vault.blocks_of(OTHER) == []


def test_unknown_records(vault: Vault, vaults) -> None:
    for scope in (Scope.record("0" * 32), Scope.record(vault.block(vaults.TOPIC).id)):
        with pytest.raises(NothingMatched):
            erasure.plan(vault, scope, blocks="delete")
    for empty in ((), ("",)):
        with pytest.raises(UsageError):
            Scope.record(*empty)


def test_the_choice_is_part_of_the_digest(vault: Vault, vaults) -> None:
    scope = Scope.record(ids(vault, vaults.TOPIC)[0])
    delete, retrain = (erasure.plan(vault, scope, blocks=choice).digest for choice in ("delete", "retrain"))
    assert delete != retrain
    assert erasure.plan(vault, scope, blocks="retrain").digest == retrain
    assert vaults.TOPIC not in repr(erasure.plan(vault, scope, blocks="retrain"))


def aged(vault: Vault, item: str, days: float) -> None:
    """Pretend that a record was added `days` ago."""
    from sqlalchemy import update

    from fedmem.vault.store.database import RecordRow

    with vault.core.writing(), vault.core.database.session() as session:
        session.execute(update(RecordRow).where(RecordRow.id == item).values(created=time.time() - 86400 * days))


def test_before_a_date(vault: Vault, vaults) -> None:
    old, *rest = ids(vault, vaults.TOPIC)
    aged(vault, old, 40)
    month = datetime.now(UTC) - timedelta(days=30)
    planned = erasure.plan(vault, Scope.before(month), blocks="delete")
    assert planned.counts["record"] == 1
    erasure.execute(vault, planned, planned.digest)
    assert ids(vault, vaults.TOPIC) == rest
    assert [block.topic for block in vault.blocks()] == [OTHER]
    with pytest.raises(NothingMatched):
        erasure.plan(vault, Scope.before(month), blocks="delete")
    with pytest.raises(UsageError, match="time zone"):
        Scope.before(datetime.now())
    tomorrow = Scope.before(datetime.now(UTC) + timedelta(days=1))
    erase(vault, tomorrow, "retrain", Trainer())
    assert vault.records(ALL) == vault.blocks() == []


def test_what_is_due(vault: Vault, vaults) -> None:
    with pytest.raises(NothingMatched):
        erasure.plan(vault, Scope.due())
    old, *rest = ids(vault, vaults.TOPIC)
    kept, shared = ids(vault, OTHER)[0], ids(vault, None)[0]
    for item in (old, kept, shared):
        aged(vault, item, 40)
    vault.keep(vaults.TOPIC, 30)
    vault.keep(OTHER, 50)
    erase(vault, Scope.due(), "retrain", Trainer())
    assert ids(vault, vaults.TOPIC) == rest
    assert {kept, shared} <= {record.id for record in vault.records(ALL)}
    assert vault.retention() == {vaults.TOPIC: 30.0, OTHER: 50.0}  # the rule outlives what it erased
    later = Scope.due(datetime.now(UTC) + timedelta(days=31))
    erase(vault, later, "delete")
    assert ids(vault, vaults.TOPIC) == []


def test_a_training_that_breaks_is_partial_and_goes_on(vault: Vault, vaults) -> None:
    trainer = Trainer()
    planned = erasure.plan(vault, Scope.record(ids(vault, vaults.TOPIC)[0]), blocks="retrain")
    with pytest.raises(PartialErasure, match="resume"):
        erasure.execute(vault, planned, planned.digest, retrain=Broken())
    vault = vaults.reopen(vault)
    assert states(vault) == [("completed", "pending")]
    assert erasure.resume(vault) == []  # nobody to train
    (outcome,) = erasure.resume(vault, retrain=trainer)
    assert outcome.retrained == (vault.block(vaults.TOPIC).id,)
    assert states(vault) == [("completed", "done")]
    assert erasure.resume(vault, retrain=trainer) == []


def test_a_wish_can_be_given_up(vault: Vault, vaults) -> None:
    planned = erasure.plan(vault, Scope.record(ids(vault, vaults.TOPIC)[0]), blocks="retrain")
    with pytest.raises(PartialErasure):
        erasure.execute(vault, planned, planned.digest, retrain=Broken())
    (status,) = erasure.status(vault)
    assert erasure.cancel(vault, status.id).retraining == "given up"
    assert erasure.resume(vault, retrain=Trainer()) == []
    with pytest.raises(Refused):
        erasure.cancel(vault, status.id)
    with pytest.raises(NothingMatched):
        erasure.cancel(vault, "absent")


def test_erasing_the_topic_takes_the_wish_with_it(vault: Vault, vaults) -> None:
    planned = erasure.plan(vault, Scope.record(ids(vault, vaults.TOPIC)[0]), blocks="retrain")
    with pytest.raises(PartialErasure):
        erasure.execute(vault, planned, planned.digest, retrain=Broken())
    erase(vault, Scope.topic(vaults.TOPIC))
    assert [one.retraining for one in erasure.status(vault)] == ["given up", ""]
    assert vaults.TOPIC not in repr(vault.core.table.facts)


@pytest.mark.parametrize("at", range(0, 44, 2))
def test_cut_at_any_operation_then_resumed(vaults, faults, at: int) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(3))
    learn(vault, vaults.TOPIC)
    first, *rest = ids(vault, vaults.TOPIC)
    planned = erasure.plan(vault, Scope.record(first), blocks="retrain")
    faults.arm("cut", at)
    with contextlib.suppress(faults.PowerCut):
        erasure.execute(vault, planned, planned.digest, retrain=Trainer())
    faults.arm("cut", None)
    vault = vaults.reopen(vault)
    if not erasure.status(vault):  # cut before it was durable: the old state
        assert len(ids(vault, vaults.TOPIC)) == 3
        assert [run.state for run in vault.runs(vaults.TOPIC)] == ["finished"]
        return
    erasure.resume(vault, retrain=Trainer())
    assert states(vault) == [("completed", "done")]
    assert ids(vault, vaults.TOPIC) == rest
    (block,) = vault.blocks()
    assert vault.block_rows(block.id).decode().split() == rest
    spends = [event for event in vault.ledger.events() if event.kind == "spend"]
    assert len(spends) == 2  # one charge for the old block, one for the new
    assert erasure.verify(vault, erasure.status(vault)[0].id, deep=True).is_clean


def test_a_pending_one_is_cancelled_and_its_wish_with_it(vault: Vault, vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stopped right after the journal."""
    from fedmem.erasure import engine

    planned = erasure.plan(vault, Scope.record(ids(vault, vaults.TOPIC)[0]), blocks="retrain")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute_entry", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            erasure.execute(vault, planned, planned.digest, retrain=Trainer())
    vault = vaults.reopen(vault)
    (found,) = erasure.status(vault)
    assert (found.state, found.retraining) == ("pending", "pending")
    assert erasure.cancel(vault, found.id).state == "cancelled"
    assert erasure.resume(vault, retrain=Trainer()) == []
    assert len(ids(vault, vaults.TOPIC)) == 4
    assert [run.state for run in vaults.reopen(vault).runs(vaults.TOPIC)] == ["finished"]
    with pytest.raises(Refused):
        erasure.cancel(vaults.opened[-1], found.id)
