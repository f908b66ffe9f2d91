"""Train the bank of a release into a new release [docs/method.md, §4].

Modes
- `cotrain`: train anchor and bank together, from the release. `joint`: the same, both from new parameters.
- `frozen`: train the bank alone, as independent jobs (`fedmem.coordinator.subtrees`). `posthoc`: the same, for an
  anchor that was not made here.

Invariants
- The result in a folder is a function of the inputs. The same call again resumes, or returns the finished result.
- The new release is written when all its parts are complete. Before that no new release exists. The old release never
  changes.

    train_bank(corpus, release.root, out, TrainPlan("cotrain", 256, settings, seed=7), StaticEmbedder(), Watch())
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fedmem.coordinator.build import RESULT, Facts, check_length, read_facts, training_facts
from fedmem.coordinator.examine import load_anchor_shape, verify_release
from fedmem.coordinator.subtrees import (
    SubtreeTraining,
    job_names,
    merge_parts,
    read_job_facts,
    run_job,
    subtree_name,
)
from fedmem.errors import UsageError
from fedmem.memory.attach import attach
from fedmem.routing.embedder import Embedder
from fedmem.routing.router import route
from fedmem.training.bank_state import BankStream
from fedmem.training.corpus import Corpus
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import BankTrainer, Trainer
from fedmem.training.packed_dataset import Rows, routed_rows
from fedmem.training.plans import APART, TOGETHER, TrainPlan, plan_inputs
from fedmem.training.release import Release
from fedmem.training.resumable import ResumableRun
from fedmem.training.seeds import derive_seed
from fedmem.training.settings import TrainedParts
from fedmem.training.state import TrainingTrace, Watch, claim, write_json


def train_bank(
    corpus: Corpus,
    release: Path,
    out: Path,
    plan: TrainPlan,
    embedder: Embedder,
    watch: Watch,
    subtrees: Collection[int] = (),
) -> Facts:
    """Train the bank of a release into the folder `out`.

    Args:
        corpus: public texts.
        release: folder of the release to start from.
        out: folder of this training. It holds the state, the parts, and at the end `releases/` and `training.json`.
        plan: mode, row length, settings and seed.
        embedder: the embedder that the tree of the release was trained with.
        watch: callbacks for progress and figures.
        subtrees: if given, run only the jobs of these subtrees (0 to k - 1) and leave their parts in `out`.

    Returns:
        The content of `training.json`, which includes the digest of the new release. With `subtrees`: the inputs, and
        the names of the jobs that are done and missing.

    Raises:
        VersionMismatch: the embedder is not that of the release, or `out` belongs to other inputs.
        VerificationFailed: the parts of the release do not fit together.
        UsageError: `subtrees` with a mode that has none, or a row length that the anchor cannot read.
    """
    if subtrees and plan.mode in TOGETHER:
        raise UsageError(f"Only the modes {' and '.join(APART)} split into subtrees.")
    old = verify_release(release).check_embedder(embedder.digest)
    check_length(load_anchor_shape(old).config, plan.length)
    inputs = {"command": "bank train", "corpus": corpus.digest, "release": old.digest} | plan_inputs(plan)
    inputs_digest = claim(out, inputs)
    if (out / RESULT).exists():
        return read_facts(out)
    train, heldout = (_pack_rows(old, texts, plan.length, embedder) for texts in (corpus.train, corpus.heldout))
    training = SubtreeTraining(old, train, heldout, plan.settings, plan.seed, out, inputs_digest)
    if plan.mode in TOGETHER:
        return _train_together(training, plan.mode, inputs, watch)
    return _train_apart(training, inputs, watch, [subtree_name(subtree) for subtree in sorted(subtrees)])


def _pack_rows(release: Release, texts: Sequence[str], length: int, embedder: Embedder) -> Rows:
    return routed_rows(release.tokenizer, texts, length, lambda batch: route(release.tree, embedder.embed(batch)))


def _train_together(training: SubtreeTraining, mode: str, inputs: Facts, watch: Watch) -> Facts:
    """Train anchor and bank in one run, and write the new release."""
    settings, seed = training.settings, derive_seed(training.seed, mode)
    model, start = _starting_parameters(training, mode)
    with ResumableRun(training.out / "state", training.inputs, mode) as run:
        memory = attach(model)
        levels, generic = run.levels(start), LazyAdamW(start.generic[None].clone())
        trained_parts = TrainedParts(levels=frozenset(range(1, len(levels) + 1)))
        bank = BankTrainer(memory, start.spec, levels, generic, training.train.paths_MP, settings, trained_parts)
        trace = run.drive(Trainer(model, training.train.packed, settings, seed, bank), training.heldout, watch)
        memory.detach()
        tokens = training.train.tokens(settings.steps, settings.batch, seed)
        trained = replace(run.trained(start), generic=generic.blocks[0])
        facts = _write_release(training, model, trained, training_facts(inputs, trace, tokens))
        run.remove_state()
    return facts


def _starting_parameters(training: SubtreeTraining, mode: str) -> tuple[PreTrainedModel, BankStream]:
    """Return anchor and bank of the release, or for `joint` new ones of the same shape."""
    model = training.release.anchor()
    if mode != "joint":
        return model, training.release.bank_stream()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(training.seed, "anchor"))
        model = type(model)(model.config)
    return model, BankStream.new(training.release.spec, derive_seed(training.seed, "bank"))


def _train_apart(training: SubtreeTraining, inputs: Facts, watch: Watch, selected: Sequence[str]) -> Facts:
    """Train the bank alone, job by job. With `selected` run only these jobs, else all, and merge their parts."""
    names = job_names(training.release.spec)
    for name in selected or names:
        run_job(training, name, watch)
    if selected:
        done = [name for name in names if training.part(name).exists()]
        return {"inputs": inputs, "done": done, "missing": [name for name in names if name not in done]}
    jobs = read_job_facts(training)
    trace = TrainingTrace([point for job in jobs for point in job["curve"]], sum(job["seconds"] for job in jobs))
    facts = training_facts(inputs, trace, sum(job["tokens"] for job in jobs))
    return _write_release(training, training.release.anchor(), merge_parts(training), facts)


def _write_release(training: SubtreeTraining, model: PreTrainedModel, bank: BankStream, facts: Facts) -> Facts:
    """Write the new release, then `training.json`. Return the content of `training.json`."""
    old = training.release
    new = Release.write(training.out / "releases", model, old.tokenizer, old.tree, old.manifest["embedder"], bank)
    write_json(training.out / RESULT, facts | {"release": new.digest})
    return read_facts(training.out)
