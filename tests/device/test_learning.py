from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.device import learning as learn
from fedmem.device.learning import LearnSettings, learn_topic
from fedmem.errors import BudgetExceeded, NothingMatched, Refused
from fedmem.memory.sites import spec_for
from fedmem.policy.files import Topic
from fedmem.privacy.ledger import block_epsilon, subject_epsilon
from fedmem.privacy.plan import PrivacyPlan
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release
from fedmem.vault.vault import NewRecord, Vault

HEALTH = Topic("health", epsilon=8.0, delta=1e-5)
PLAN = PrivacyPlan(sampling_rate=0.5, steps=3, clip=0.1, noise_multiplier=1.5, divisor=4.0, delta=1e-5, record_cap=100)
SETTINGS = LearnSettings(width=4, length=16)
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    tokenizer = train_tokenizer(["a plain public text", "another public text"], vocab_size=280)
    model = new_anchor("nano", 280, 0)
    state = BankState.new(spec_for(model, "ffn", 2, (4, 2)), 0)
    tree = Tree(2, 2, (np.eye(4, 8, dtype=np.float32)[:2], np.eye(4, 8, dtype=np.float32)))
    folder = tmp_path_factory.mktemp("releases")
    return Release.write(folder, model, tokenizer, tree, "none", state.stream())


@pytest.fixture
def vault(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    with Vault.create(tmp_path / "vault", subject="alice", simulated=True) as opened:
        yield opened


def add(vault, release, count, topic="health", first=0):
    return vault.add_records(
        [
            NewRecord(f"record {i} " + "x" * i, topic, (i % 2, i % 4), np.eye(8, dtype=np.float32)[i % 8], release)
            for i in range(first, first + count)
        ]
    )


def run(vault, release, plan=PLAN, topic=HEALTH, **options):
    return learn_topic(vault, release, topic, plan, settings=SETTINGS, **options)


def spends(vault):
    return [event for event in vault.ledger.events() if event.kind == "spend"]


def rows(vault, block):
    return load(bytes(vault.block_rows(block.id)))["rows"]


def test_a_topic_is_learned_charged_and_sealed(vault, release):
    ids = add(vault, release.digest, 6)
    block = run(vault, release)
    assert rows(vault, block).shape == (2 * 3 * 4 * 64,)
    assert (block.layers, block.width, block.d_model, block.release) == (2, 4, 64, release.digest)
    assert [event.payload["records"] for event in spends(vault)] == [ids]
    assert block_epsilon(vault.ledger.events(), block.id) == pytest.approx(PLAN.epsilon())


def test_the_charge_is_durable_before_the_first_step(vault, release, monkeypatch):
    add(vault, release.digest, 6)
    at_first_step = []
    train_block = learn.train_block

    def spy(*arguments, **options):
        at_first_step.append(len(spends(vault)))
        return train_block(*arguments, **options)

    monkeypatch.setattr(learn, "train_block", spy)
    run(vault, release)
    assert at_first_step == [1]


class Killed(BaseException):
    """Stands for a process that ends in the middle of training."""


def killed_at(step):
    def progress(done, _steps):
        if done == step:
            raise Killed

    return progress


def test_a_killed_run_resumes_to_the_same_bytes_on_its_own_charge(vault, release, tmp_path):
    add(vault, release.digest, 6)
    with pytest.raises(Killed):
        run(vault, release, run_key=KEY, progress=killed_at(2))
    assert len(spends(vault)) == 1
    assert vault.blocks() == []
    resumed = run(vault, release, topic=replace(HEALTH, epsilon=PLAN.epsilon()), run_key=KEY)
    assert len(spends(vault)) == 1
    with Vault.create(tmp_path / "other", subject="bob", simulated=True) as other:
        add(other, release.digest, 6)
        straight = run(other, release, run_key=KEY)
        assert torch.equal(rows(vault, resumed), rows(other, straight))


def test_changed_data_ends_the_old_run_charged_and_draws_other_noise(vault, release):
    add(vault, release.digest, 6)
    with pytest.raises(Killed):
        run(vault, release, run_key=KEY, progress=killed_at(2))
    add(vault, release.digest, 1, first=6)
    run(vault, release, run_key=KEY)
    assert [event.kind for event in vault.ledger.events()] == ["spend", "run_failed", "spend", "run_finished"]
    assert subject_epsilon(vault.ledger.events()) > PLAN.epsilon()


def test_a_stream_is_bound_to_plan_and_data(vault, release, monkeypatch):
    labels = []
    stream = learn.PrivacyStream
    monkeypatch.setattr(learn, "PrivacyStream", lambda key, label: (labels.append(label), stream(key, label))[1])
    add(vault, release.digest, 3)
    run(vault, release, run_key=KEY)
    run(vault, release, replace(PLAN, divisor=5.0), run_key=KEY)
    add(vault, release.digest, 1, first=3)
    run(vault, release, run_key=KEY)
    assert len(set(labels)) == 3


def test_a_run_beyond_the_budget_is_refused_uncharged(vault, release):
    add(vault, release.digest, 6)
    tight = replace(HEALTH, epsilon=1.2 * PLAN.epsilon())
    run(vault, release, topic=tight)
    with pytest.raises(BudgetExceeded):
        run(vault, release, topic=tight)
    assert len(spends(vault)) == 1
    run(vault, release, topic=replace(HEALTH, epsilon=2 * PLAN.epsilon()))
    assert len(spends(vault)) == 2


def test_no_noise_passes_no_finite_budget(vault, release):
    add(vault, release.digest, 2)
    with pytest.raises(BudgetExceeded):
        run(vault, release, replace(PLAN, noise_multiplier=0.0), topic=replace(HEALTH, epsilon=1e9))


def test_a_resume_is_refused_where_the_budget_has_shrunk(vault, release):
    add(vault, release.digest, 6)
    with pytest.raises(Killed):
        run(vault, release, progress=killed_at(1))
    with pytest.raises(BudgetExceeded):
        run(vault, release, topic=replace(HEALTH, epsilon=0.5 * PLAN.epsilon()))
    assert len(spends(vault)) == 1


def test_what_cannot_be_learned_is_refused(vault, release):
    with pytest.raises(NothingMatched):
        run(vault, release)
    add(vault, release.digest, 3)
    with pytest.raises(Refused, match="cap"):
        run(vault, release, replace(PLAN, record_cap=2))
    with pytest.raises(Refused, match="delta"):
        run(vault, release, topic=replace(HEALTH, delta=1e-6))
    assert spends(vault) == []


def test_records_of_another_release_are_routed_again(vault, release):
    vault.add_records([NewRecord("old", "health", (), np.eye(8, dtype=np.float32)[3], "older release")])
    assert run(vault, release).release == release.digest


def test_global_seeds_change_nothing_and_keys_change_everything(vault, release):
    add(vault, release.digest, 6)
    found = []
    for seed, key in ((1, KEY), (2, KEY), (2, bytes(32))):
        torch.manual_seed(seed)
        found.append(rows(vault, run(vault, release, topic=replace(HEALTH, epsilon=100.0), run_key=key)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
