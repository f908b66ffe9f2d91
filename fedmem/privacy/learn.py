"""Learn a topic's private block: check, charge, train, seal, in that order.

Invariants
- The charge is durable before the first gradient is computed (I6); an interrupted run resumes on its own charge.
- A run that would pass the topic's budget is refused before anything is charged.
- A resumed run repeats its bytes: it starts again from public rows with the same stream.
- The stream is bound to plan, release, texts and paths, beside the run's own key: other data never meet the same noise.
- Private text goes nowhere but into the model in this process; errors name the topic's state, never a record.

    learn_topic(vault, release, policy.topics["health"], plan)
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedmem.canonical import canonical_json, digest
from fedmem.errors import BudgetExceeded, NothingMatched, Refused
from fedmem.memory.attach import attach
from fedmem.memory.block import new_blocks, source
from fedmem.memory.spec import MemorySpec
from fedmem.policy.files import Topic
from fedmem.privacy.dpsgd import Optimiser, Progress, train_block
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions
from fedmem.privacy.ledger import Meter, check_budget, is_open
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream
from fedmem.routing.router import route
from fedmem.training.release import Release
from fedmem.training.sequences import encode
from fedmem.vault.vault import BlockInfo, Record, Run, Vault

Path = tuple[int, ...]


@dataclass(frozen=True)
class LearnSettings:
    """Public choices beside the privacy plan: block `width`, sequence `length` in tokens, `seed` of the first rows.

    Width 16: the norm of the noise grows with the root of the width; 8 gained no more on public text.
    """

    width: int = 16
    length: int = 128
    seed: int = 0
    optimiser: Optimiser = field(default_factory=Optimiser)


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
    topic's), BudgetExceeded (nothing is charged then), and what the vault raises.
    """
    settings = settings or LearnSettings()
    records = vault.records(topic.name)
    _check(records, topic, plan)
    paths = [_path(record, release) for record in records]
    content = digest([[record.text, list(path)] for record, path in zip(records, paths, strict=True)])
    public = {"privacy": plan.to_dict(), "learning": asdict(settings)}
    ids = [record.id for record in records]
    run = _charge(vault, topic, release, plan, public, ids, digest([ids, content]), run_key)
    stream = PrivacyStream(run.key, canonical_json([public, release.digest, content]))
    spec = MemorySpec.single(release.spec.shape, release.spec.layers, settings.width)
    block_X = _train(
        release, spec, _sequences(records, paths, release, settings), plan, stream, settings, runtime, progress
    )
    values, width = save({"rows": block_X}), settings.width
    return vault.finish_run(run, topic.name, release.digest, values, spec.layers, width, spec.shape.d_model)


def _charge(
    vault: Vault,
    topic: Topic,
    release: Release,
    plan: PrivacyPlan,
    public: dict[str, Any],
    ids: list[str],
    data_digest: str,
    run_key: bytes | None,
) -> Run:
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


def _sequences(records: list[Record], paths: list[Path], release: Release, settings: LearnSettings) -> PrivateSequences:
    encoded = encode(release.tokenizer, [record.text for record in records], settings.length)
    return PrivateSequences(
        tokens_NT=encoded.tokens_NT,
        record_N=encoded.document_N,
        records=len(records),
        shared=lambda numbers_B: source(
            release.spec, release.bank.fetch_many(paths[encoded.document_N[n]] for n in numbers_B)
        ),
    )


def _train(
    release: Release,
    spec: MemorySpec,
    data: PrivateSequences,
    plan: PrivacyPlan,
    stream: PrivacyStream,
    settings: LearnSettings,
    runtime: RuntimeOptions | None,
    progress: Progress | None,
) -> Tensor:
    model = release.anchor()
    memory, start_X = attach(model), new_blocks(spec, 1, 1, torch.Generator().manual_seed(settings.seed))[0]
    options: dict[str, Any] = {"optimiser": settings.optimiser, "runtime": runtime, "progress": progress}
    try:
        return train_block(model, memory, spec, start_X, data, plan, stream, meter=Meter(plan.spend), **options)
    finally:
        memory.detach()
