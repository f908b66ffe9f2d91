"""Train the bank of a release into a new release [docs/method.md, §4].

Modes
- `cotrain`: anchor and bank move together; `joint`: the same, both from scratch.
- `frozen`, `posthoc`: the bank alone, as independent jobs (`fedmem.coordinator.subtrees`); `posthoc` is its name for an
  anchor that was not made here.

Invariants
- A folder's result is a function of its inputs; the same call again goes on, or gives what there is.
- The new release is written when everything in it is done; until then there is none, and the old one never changes.

    train_bank(corpus, release.root, out, TrainPlan("cotrain", 256, settings, seed=7), StaticEmbedder(), Watch())
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fedmem.coordinator.build import RESULT, Facts, check_length, read_facts, told
from fedmem.coordinator.examine import skeleton, verify
from fedmem.coordinator.subtrees import SubtreeTraining, job_names, merged, run_job, subtree_name, traces
from fedmem.errors import UsageError
from fedmem.memory.attach import attach
from fedmem.routing.embedder import Embedder
from fedmem.routing.router import route
from fedmem.training.bank_state import BankStream
from fedmem.training.corpus import Corpus
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import BankTrainer, Trainer
from fedmem.training.packed_dataset import Rows, routed_rows
from fedmem.training.plans import APART, TOGETHER, TrainPlan, flat
from fedmem.training.release import Release
from fedmem.training.resumable import ResumableRun
from fedmem.training.seeds import derived
from fedmem.training.settings import Trained
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
    """Train the bank of a release into `out`; gives what `training.json` holds, the new release's digest included.

    With `subtrees`, runs only their jobs and leaves their parts in `out`: gives the jobs that are done and missing.

    Raises VersionMismatch for another embedder or a folder of other inputs, VerificationFailed for a release that
    does not hold together, UsageError for a mode that has no subtrees.
    """
    if subtrees and plan.mode in TOGETHER:
        raise UsageError(f"Only the modes {' and '.join(APART)} split into subtrees.")
    found = verify(release).routed_by(embedder.digest)
    check_length(skeleton(found).config, plan.length)
    inputs = {"command": "bank train", "corpus": corpus.digest, "release": found.digest} | flat(plan)
    claimed = claim(out, inputs)
    if (out / RESULT).exists():
        return read_facts(out)
    train, heldout = (_rows(found, texts, plan.length, embedder) for texts in (corpus.train, corpus.heldout))
    training = SubtreeTraining(found, train, heldout, plan.settings, plan.seed, out, claimed)
    if plan.mode in TOGETHER:
        return _together(training, plan.mode, inputs, watch)
    return _apart(training, inputs, watch, [subtree_name(subtree) for subtree in sorted(subtrees)])


def _rows(release: Release, texts: Sequence[str], length: int, embedder: Embedder) -> Rows:
    return routed_rows(release.tokenizer, texts, length, lambda found: route(release.tree, embedder.embed(found)))


def _together(training: SubtreeTraining, mode: str, inputs: Facts, watch: Watch) -> Facts:
    """Anchor and bank in one run."""
    settings, seed = training.settings, derived(training.seed, mode)
    model, start = _start(training, mode)
    with ResumableRun(training.out / "state", training.inputs, mode) as run:
        memory = attach(model)
        levels, generic = run.levels(start), LazyAdamW(start.generic[None].clone())
        moved = Trained(levels=frozenset(range(1, len(levels) + 1)))
        bank = BankTrainer(memory, start.spec, levels, generic, training.train.paths_MP, settings, moved)
        trace = run.drive(Trainer(model, training.train.packed, settings, seed, bank), training.heldout, watch)
        memory.detach()
        tokens = training.train.tokens(settings.steps, settings.batch, seed)
        trained = replace(run.trained(start), generic=generic.blocks[0])
        facts = _released(training, model, trained, told(inputs, trace, tokens))
        run.remove_state()
    return facts


def _start(training: SubtreeTraining, mode: str) -> tuple[PreTrainedModel, BankStream]:
    """Anchor and bank as the release has them, or new ones of the same shape."""
    model = training.release.anchor()
    if mode != "joint":
        return model, training.release.bank_stream()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived(training.seed, "anchor"))
        model = type(model)(model.config)
    return model, BankStream.new(training.release.spec, derived(training.seed, "bank"))


def _apart(training: SubtreeTraining, inputs: Facts, watch: Watch, only: Sequence[str]) -> Facts:
    """The bank alone, job by job; with `only` no more than those, else all that is missing, merged."""
    names = job_names(training.release.spec)
    for name in only or names:
        run_job(training, name, watch)
    if only:
        done = [name for name in names if training.part(name).exists()]
        return {"inputs": inputs, "done": done, "missing": [name for name in names if name not in done]}
    parts = traces(training)
    trace = TrainingTrace([point for part in parts for point in part["curve"]], sum(part["seconds"] for part in parts))
    facts = told(inputs, trace, sum(part["tokens"] for part in parts))
    return _released(training, training.release.anchor(), merged(training), facts)


def _released(training: SubtreeTraining, model: PreTrainedModel, bank: BankStream, facts: Facts) -> Facts:
    """Write the new release, then what there is to tell."""
    old = training.release
    new = Release.write(training.out / "releases", model, old.tokenizer, old.tree, old.manifest["embedder"], bank)
    write_json(training.out / RESULT, facts | {"release": new.digest})
    return read_facts(training.out)
