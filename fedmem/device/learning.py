"""Learn a topic's private block: check, charge, train, seal, in that order.

Invariants
- The charge is durable before the first gradient is computed (I6); an interrupted run resumes on its own charge.
- A run that would pass the topic's budget is refused before anything is charged.
- A resumed run ends in the bytes of one that was never cut: it goes on from its sealed checkpoint, or starts again
  from public rows, with the same stream either way.
- The stream is bound to plan, release, texts and paths, beside the run's own key: other data never meet the same noise.
- Private text goes nowhere but into the model in this process; errors name the topic's state, never a record.

    learn_topic(vault, release, policy.topics["health"], plan)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from fedmem.errors import BudgetExceeded, Busy, NothingMatched, Refused
from fedmem.memory.attach import attach
from fedmem.memory.block import new_blocks, source
from fedmem.memory.spec import MemorySpec
from fedmem.policy.files import Topic
from fedmem.privacy.dpsgd import Optimiser, Progress, State, Watch, train_block
from fedmem.privacy.footprint import kept_bytes, record_bytes
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions
from fedmem.privacy.ledger import Meter, check_budget, is_open
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream
from fedmem.routing.router import route
from fedmem.storage.canonical import canonical_json, digest
from fedmem.training.release import Release
from fedmem.training.sequences import encode
from fedmem.vault.store.core import serialised
from fedmem.vault.vault import BlockInfo, Record, TrainingRun, Vault

Path = tuple[int, ...]
RECORD_CAP = 10_000  # public: the greatest number of records that a topic's default plan allows for
TOO_LONG = "A record, or all of the topic together, takes more memory than the limit leaves."


@dataclass(frozen=True)
class LearnSettings:
    """Public choices beside the privacy plan: block `width`, sequence `length` in tokens, `seed` of the first rows.

    Width 16: the norm of the noise grows with the root of the width; 8 gained no more on public text.
    """

    width: int = 16
    length: int = 128
    seed: int = 0
    optimiser: Optimiser = field(default_factory=Optimiser)


@dataclass(frozen=True)
class ChargedRun:
    """A run that is charged, with all that its training needs, in the memory of this process only.

    `state` is where an earlier session was cut, or None.
    """

    run: TrainingRun
    topic: str = field(repr=False)
    release: Release = field(repr=False)
    plan: PrivacyPlan
    settings: LearnSettings
    spec: MemorySpec = field(repr=False)
    data: PrivateSequences = field(repr=False)
    stream: PrivacyStream = field(repr=False)
    state: State | None = field(repr=False)


def learn_topic(
    vault: Vault,
    release: Release,
    topic: Topic,
    plan: PrivacyPlan,
    *,
    settings: LearnSettings | None = None,
    runtime: RuntimeOptions | None = None,
    run_key: bytes | None = None,
    progress: Progress | None = None,
) -> BlockInfo:
    """Train the block of `topic` on all of its records on this release, under `plan`, and seal it in the vault.

    `run_key` (32 bytes) is for simulated vaults only. Guarantees: the block is (plan.epsilon(), plan.delta)-DP for
    adding or removing one record; composed with every earlier run, no record passes the topic's epsilon.

    Raises NothingMatched (no record of the topic), Refused (more records than the declared cap, or a delta above the
    topic's), BudgetExceeded (nothing is charged then), Busy (another thread trains the topic), and what the vault
    raises.
    """
    with _only_training(vault, topic.name):
        charged = charge(vault, release, topic, plan, settings=settings, run_key=run_key)
        return finish(vault, charged, train(charged, runtime, progress))


def default_plan(epsilon: float) -> PrivacyPlan:
    """The plan for small topics at ε `epsilon`. Raises UsageError, Refused."""
    return PrivacyPlan.small(record_cap=RECORD_CAP).calibrate(epsilon)


@contextmanager
def _only_training(vault: Vault, topic: str) -> Iterator[None]:
    """Keep other threads from training the topic meanwhile: they would go on with the same run, twice."""
    with vault.core.lock:
        if topic in vault.core.trained_topics:
            raise Busy("Another thread of this program trains the topic. Wait until it is done.")
        vault.core.trained_topics.add(topic)
    try:
        yield
    finally:
        vault.core.trained_topics.discard(topic)


@serialised
def charge(
    vault: Vault,
    release: Release,
    topic: Topic,
    plan: PrivacyPlan,
    *,
    settings: LearnSettings | None = None,
    run_key: bytes | None = None,
    renew: bool = True,
    room: int | None = None,
) -> ChargedRun:
    """Check, read the records, and charge a run or take up the open one, in one step for all threads.

    Raises as `learn_topic`.

    Args:
        renew: where the open run had other records or another plan, whether a new one is charged in its place; else
            it ends failed, stays charged, and Refused is raised.
        room: bytes that the records may take in memory; Refused where they take more, before anything is charged.
    """
    settings = settings or LearnSettings()
    records = vault.records(topic.name)
    _check(records, topic, plan)
    paths = [_path(record, release) for record in records]
    data = _sequences(records, paths, release, settings, room)
    content = digest([[record.text, list(path)] for record, path in zip(records, paths, strict=True)])
    public = {"privacy": plan.to_dict(), "learning": asdict(settings)}
    ids = [record.id for record in records]
    facts = public, digest([ids, content]), ids
    if not renew and vault.end_changed_runs(topic.name, release.digest, *facts):
        raise Refused(
            "The records or the plan changed since the training was interrupted, so it cannot go on; its run ended as "
            "failed and stays charged. Train again for a new run, which is charged on top."
        )
    run = _charge(vault, topic, release, plan, *facts, run_key)
    stream = PrivacyStream(run.key, canonical_json([public, release.digest, content]))
    spec = private_spec(release, settings)
    return ChargedRun(run, topic.name, release, plan, settings, spec, data, stream, _state(vault, run))


def train(
    charged: ChargedRun,
    runtime: RuntimeOptions | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """The block of a charged run, from its start or from where it was cut. Needs no vault."""
    release, settings = charged.release, charged.settings
    model = release.anchor()
    memory, generator = attach(model), torch.Generator().manual_seed(settings.seed)
    start_X = new_blocks(charged.spec, 1, 1, generator)[0]
    seen: dict[str, Any] = {"progress": progress, "state": charged.state, "watch": watch}
    options = {"optimiser": settings.optimiser, "runtime": runtime, "meter": Meter(charged.plan.spend), **seen}
    try:
        return train_block(model, memory, charged.spec, start_X, charged.data, charged.plan, charged.stream, **options)
    finally:
        memory.detach()


def finish(vault: Vault, charged: ChargedRun, block_X: Tensor) -> BlockInfo:
    """Seal the block of a run. Raises NothingMatched where the run is not open any more, and what the vault raises."""
    spec, width, about = charged.spec, charged.settings.width, (charged.topic, charged.release.digest)
    return vault.finish_run(charged.run, *about, save({"rows": block_X}), spec.layers, width, spec.shape.d_model)


def keep(vault: Vault, charged: ChargedRun, state: State) -> None:
    """Seal where a run stands, so that another session goes on from there. Raises NothingMatched, StorageError."""
    tensors = {"block": state.block_X, "first": state.first_X, "second": state.second_X}
    vault.save_checkpoint(charged.run, state.step, save(tensors))


def private_spec(release: Release, settings: LearnSettings) -> MemorySpec:
    """The shape of a private block on this release."""
    return MemorySpec.single(release.spec.shape, release.spec.layers, settings.width)


def _state(vault: Vault, run: TrainingRun) -> State | None:
    found = vault.checkpoint(run) if run.resumed else None
    if found is None:
        return None
    step, tensors = found[0], load(found[1])
    return State(step, tensors["block"], tensors["first"], tensors["second"])


def _charge(
    vault: Vault,
    topic: Topic,
    release: Release,
    plan: PrivacyPlan,
    public: dict[str, Any],
    data_digest: str,
    ids: list[str],
    run_key: bytes | None,
) -> TrainingRun:
    """Check the budget, then charge a new run or take up the open one, which is charged already."""
    events, spend = vault.ledger.events(), plan.spend.to_dict() | {"plan": digest(public)}
    resuming = is_open(events, release.digest, ids, spend)
    new = replace(plan.spend, steps=0) if resuming else plan.spend
    check_budget(events, new, ids, budget=topic.epsilon, delta=plan.delta)
    run = vault.begin_run(topic.name, release.digest, public, data_digest, ids, spend, run_key=run_key)
    if resuming and not run.resumed:
        # The new charge was not checked against the budget, so this run must not go on; the next one is checked.
        vault.fail_run(run)
        raise BudgetExceeded("The interrupted run cannot be resumed; it stays charged. Learn again for a new one.")
    return run


def _check(records: list[Record], topic: Topic, plan: PrivacyPlan) -> None:
    if not records:
        raise NothingMatched("This topic has no record to learn from; add some first.")
    if len(records) > plan.record_cap:
        raise Refused("This topic holds more records than the plan's cap declares; make a plan with a higher cap.")
    if plan.delta > topic.delta:
        raise Refused(
            f"The plan's delta {plan.delta:g} is above the policy's {topic.delta:g} for this topic; lower it."
        )


def _path(record: Record, release: Release) -> Path:
    """The record's path in this release, routed again if it was stored under another one."""
    if record.release == release.digest:
        return record.path
    return tuple(int(node) for node in route(release.tree, record.vector[None])[0])


def _sequences(
    records: list[Record], paths: list[Path], release: Release, settings: LearnSettings, room: int | None
) -> PrivateSequences:
    tokens, record_N = _encoded(records, release, settings.length, room)
    return PrivateSequences(
        tokens_NT=torch.cat(tokens),
        record_N=record_N,
        records=len(records),
        shared=lambda numbers_B: source(release.spec, release.bank.fetch_many(paths[record_N[n]] for n in numbers_B)),
    )


def _encoded(
    records: list[Record], release: Release, length: int, room: int | None
) -> tuple[list[Tensor], NDArray[np.int64]]:
    """Tokens of each record, one record at a time: tokenising takes many times what it leaves. Raises Refused."""
    tokens, kept = list[Tensor](), 0
    for record in records:
        if room is not None and kept + record_bytes(record.text) > room:
            raise Refused(f"{TOO_LONG} Nothing was charged; give a higher limit, or make records shorter.")
        tokens.append(encode(release.tokenizer, [record.text], length).tokens_NT)
        kept += kept_bytes(len(tokens[-1]), length)
    return tokens, np.repeat(np.arange(len(records)), [len(tokens_NT) for tokens_NT in tokens])
