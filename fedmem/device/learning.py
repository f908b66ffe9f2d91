"""Train the private block of a topic: check, charge, train, seal, in that order.

Invariants
- The charge is durable before the first gradient is computed (I6). An interrupted run goes on with its own charge.
- A run that would exceed the topic's budget is refused before anything is charged.
- A resumed run ends in the same bytes as an uninterrupted one. It goes on from its sealed checkpoint, or starts again
  from public rows, and in both cases with the same noise stream.
- The stream depends on plan, release, texts and paths, beside the run's own key. Other data never get the same noise.
- Private text is used by the model in this process only. Errors describe the state of the topic, never a record.

    learn_topic(vault, release, policy.topics["health"], plan)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from fedmem.device.private_fetch import tensors_in
from fedmem.errors import BudgetExceeded, Busy, NothingMatched, Refused
from fedmem.memory.attach import attach
from fedmem.memory.block import make_source, new_blocks
from fedmem.memory.spec import MemorySpec
from fedmem.policy.files import Topic
from fedmem.privacy.dpsgd import Optimiser, Progress, State, Watch, train_block
from fedmem.privacy.footprint import kept_bytes, record_bytes
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions
from fedmem.privacy.ledger import Meter, check_budget, is_open
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.rounded_gaussian import MECHANISM
from fedmem.privacy.stream import PrivacyStream
from fedmem.routing.router import route
from fedmem.storage.canonical import canonical_json, digest
from fedmem.training.release import Release
from fedmem.training.sequences import encode
from fedmem.vault.store.core import StaleReader
from fedmem.vault.store.turns import in_turn
from fedmem.vault.vault import BlockInfo, Record, TrainingRun, Vault

Path = tuple[int, ...]
RECORD_CAP = 10_000  # public: the greatest number of records under a topic's default plan
TOO_LONG = "A record, or the whole topic, takes more memory than the limit leaves."


@dataclass(frozen=True)
class LearnSettings:
    """Public settings of a training beside its privacy plan.

    Attributes:
        width: rows of the block in each layer. The norm of the noise grows with its square root; on public text a block
            of width 8 gained no more than one of 16.
        length: tokens of a sequence.
        seed: seed of the public rows with which the block begins.
        optimiser: settings of the optimiser.
    """

    width: int = 16
    length: int = 128
    seed: int = 0
    optimiser: Optimiser = field(default_factory=Optimiser)


@dataclass(frozen=True)
class ChargedRun:
    """A charged run with all inputs of its training, in the memory of this process only.

    Attributes:
        run: the open run of the vault.
        topic: name of the topic.
        release: the release that the block is trained on.
        plan: the privacy plan that was charged.
        settings: the public settings of the training.
        spec: shape of the block.
        data: the records as sequences.
        stream: the stream of the run's key, which decides sampling and noise.
        state: the last checkpoint of an earlier session, or None.
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

    Args:
        topic: the topic of the policy, with its budget.
        settings: public settings; the defaults of `LearnSettings` if None.
        runtime: options of speed and memory; they do not change privacy.
        run_key: 32 bytes, for simulated vaults only; a random key if None.
        progress: is called after each step, with the step and the number of steps.

    Guarantees: the block is (plan.epsilon(), plan.delta)-DP for adding or removing one record. Composed with every
    earlier run, no record exceeds the topic's epsilon.

    Returns:
        The facts of the new block.

    Raises:
        NothingMatched: the topic has no record.
        Refused: more records than the plan's cap, or a delta above the topic's.
        BudgetExceeded: the run would exceed the topic's budget; nothing is charged then.
        Busy: another thread trains the topic.
        StorageError, and what the vault raises.
    """
    with _only_training(vault, topic.name), vault.core.in_use():
        generation = vault.generation
        charged = charge(vault, release, topic, plan, settings=settings, run_key=run_key)

        def check(state: State) -> None:
            if vault.generation != generation:
                raise StaleReader("Something was erased from the vault meanwhile. Learn again; the run goes on.")

        return seal_block(vault, charged, train(charged, runtime, progress, check))


def default_plan(epsilon: float) -> PrivacyPlan:
    """Return the plan for small topics, calibrated to an ε.

    Args:
        epsilon: the ε of the whole run, above 0.

    Raises:
        UsageError, Refused: as `PrivacyPlan.calibrate`.
    """
    return PrivacyPlan.small(record_cap=RECORD_CAP).calibrate(epsilon)


@contextmanager
def _only_training(vault: Vault, topic: str) -> Iterator[None]:
    """Raise Busy if another thread trains the topic: both threads would continue the same run."""
    with vault.core.lock:
        if topic in vault.core.trained_topics:
            raise Busy("Another thread of this program trains the topic. Wait until it is done.")
        vault.core.trained_topics.add(topic)
    try:
        yield
    finally:
        vault.core.trained_topics.discard(topic)


@in_turn
def charge(
    vault: Vault,
    release: Release,
    topic: Topic,
    plan: PrivacyPlan,
    *,
    settings: LearnSettings | None = None,
    run_key: bytes | None = None,
    may_recharge: bool = True,
    record_memory: int | None = None,
) -> ChargedRun:
    """Check and read the records, then charge a new run or resume the open one. No other thread or process changes
    the vault in between.

    Args:
        may_recharge: what happens if the open run had other records or another plan. True: a new run is charged in
            its place. False: the open run ends failed and stays charged, and Refused is raised.
        record_memory: bytes that the records may take in memory. If they take more, Refused is raised before anything
            is charged.

    Returns:
        The charged run with all inputs of its training.

    Raises:
        FedmemError: any error of `learn_topic`.
    """
    settings = settings or LearnSettings()
    records, spec = vault.records(topic.name), private_spec(release, settings)
    _check(records, topic, plan)
    plan.grid(spec.fetch_size)  # refused before anything is charged
    paths = [_path(record, release) for record in records]
    data = _sequences(records, paths, release, settings, record_memory)
    content = digest([[record.text, list(path)] for record, path in zip(records, paths, strict=True)])
    public = {"privacy": plan.to_dict(), "learning": asdict(settings), "noise": MECHANISM}
    ids = [record.id for record in records]
    facts = public, digest([ids, content]), ids
    if not may_recharge and vault.end_changed_runs(topic.name, release.digest, *facts):
        raise Refused(
            "The records, the plan or the noise changed since the training was interrupted, so it cannot go on: the "
            f"noise is {MECHANISM} now. Its run ended as failed and stays charged. Train again for a new run, which is "
            "charged on top."
        )
    run = _charge(vault, topic, release, plan, *facts, run_key)
    stream = PrivacyStream(run.key, canonical_json([public, release.digest, content]))
    return ChargedRun(run, topic.name, release, plan, settings, spec, data, stream, _state(vault, run))


def train(
    charged: ChargedRun,
    runtime: RuntimeOptions | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Return the trained block of a charged run, from its start or from its last checkpoint. Needs no vault.

    Args:
        progress: is called after each step, with the step and the number of steps.
        watch: is called after each step with the state. An exception that it raises ends the training.

    Returns: the rows of the block, a tensor in the layout of `charged.spec`.
    """
    release, settings = charged.release, charged.settings
    model = release.anchor()
    memory, generator = attach(model), torch.Generator().manual_seed(settings.seed)
    start_X = new_blocks(charged.spec, 1, 1, generator)[0]
    callbacks: dict[str, Any] = {"progress": progress, "state": charged.state, "watch": watch}
    options = {"optimiser": settings.optimiser, "runtime": runtime, "meter": Meter(charged.plan.spend), **callbacks}
    try:
        return train_block(model, memory, charged.spec, start_X, charged.data, charged.plan, charged.stream, **options)
    finally:
        memory.detach()


def seal_block(vault: Vault, charged: ChargedRun, block_X: Tensor) -> BlockInfo:
    """Seal the block of a run and return its facts.

    Args:
        vault: the open vault of the run.
        charged: the run.
        block_X: the trained block, `[X]`.

    Raises:
        NothingMatched: the run is not open any more.
        StorageError: the disk failed.
    """
    spec, width, owner = charged.spec, charged.settings.width, (charged.topic, charged.release.digest)
    return vault.finish_run(charged.run, *owner, save({"rows": block_X}), spec.layers, width, spec.shape.d_model)


def save_checkpoint(vault: Vault, charged: ChargedRun, state: State) -> None:
    """Seal the state of a run as its checkpoint, from which another session goes on.

    Args:
        vault: the open vault of the run.
        charged: the run.
        state: the state after a step.

    Raises:
        NothingMatched: the run is not open any more.
        StorageError: the disk failed.
    """
    tensors = {"block": state.block_X, "first": state.first_X, "second": state.second_X}
    vault.save_checkpoint(charged.run, state.step, save(tensors))


def private_spec(release: Release, settings: LearnSettings) -> MemorySpec:
    """Return the spec of a private block of `settings.width` on this release.

    Args:
        release: the release that the block is trained on.
        settings: give the width.
    """
    return MemorySpec.single(release.spec.shape, release.spec.layers, settings.width)


def _state(vault: Vault, run: TrainingRun) -> State | None:
    checkpoint = vault.checkpoint(run) if run.resumed else None
    if checkpoint is None:
        return None
    step, tensors = checkpoint[0], tensors_in(checkpoint[1])
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
    """Check the budget, then charge a new run, or resume the open run, which is charged already."""
    events, spend = vault.ledger.events(), plan.spend.to_dict() | {"plan": digest(public)}
    resuming = is_open(events, release.digest, ids, spend)
    new = replace(plan.spend, steps=0) if resuming else plan.spend
    check_budget(events, new, ids, budget=topic.epsilon, delta=plan.delta)
    run = vault.begin_run(topic.name, release.digest, public, data_digest, ids, spend, run_key=run_key)
    if resuming and not run.resumed:
        # This new charge was not checked against the budget, so its run must not go on. The next run is checked.
        vault.fail_run(run)
        raise BudgetExceeded("The interrupted run cannot be resumed and stays charged. Learn again for a new run.")
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
    """Return the record's path in this release; it is routed again if it was stored with another release."""
    if record.release == release.digest:
        return record.path
    return tuple(int(node) for node in route(release.tree, record.vector[None])[0])


def _sequences(
    records: list[Record], paths: list[Path], release: Release, settings: LearnSettings, record_memory: int | None
) -> PrivateSequences:
    tokens, record_N = _encoded(records, release, settings.length, record_memory)
    return PrivateSequences(
        tokens_NT=torch.cat(tokens),
        record_N=record_N,
        records=len(records),
        shared=lambda numbers_B: make_source(
            release.spec, release.bank.fetch_many(paths[record_N[n]] for n in numbers_B)
        ),
    )


def _encoded(
    records: list[Record], release: Release, length: int, record_memory: int | None
) -> tuple[list[Tensor], NDArray[np.int64]]:
    """Return the tokens of each record, and the record number of each row. Raises Refused.

    Records are encoded one at a time: encoding takes many times the memory of its result.
    """
    tokens, used_bytes = list[Tensor](), 0
    for record in records:
        if record_memory is not None and used_bytes + record_bytes(record.text) > record_memory:
            raise Refused(f"{TOO_LONG} Nothing was charged; give a higher limit, or make records shorter.")
        tokens.append(encode(release.tokenizer, [record.text], length).tokens_NT)
        used_bytes += kept_bytes(len(tokens[-1]), length)
    return tokens, np.repeat(np.arange(len(records)), [len(tokens_NT) for tokens_NT in tokens])
