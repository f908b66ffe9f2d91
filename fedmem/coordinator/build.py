"""Where a coordinator makes an anchor and a new bank, each in a folder and from public text alone.

Training a bank is `fedmem.coordinator.bank_training`.

Invariants
- A folder's result is a function of its inputs; the same call again goes on, or gives what there is.
- Tokenizer, tree and anchor see no held-out text.

    train_anchor(corpus, folder, AnchorPlan("tiny", 4096, 256, settings, seed=7), Watch())
    release = build_bank(corpus, folder, bank, BankPlan("ffn", 8, (32, 8, 2), "uniform", seed=7), StaticEmbedder())
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PretrainedConfig

from fedmem.anchor.presets import config, new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.errors import UsageError
from fedmem.memory.placement import widths
from fedmem.memory.sites import sites_of, spec_for
from fedmem.routing.embedder import Embedder
from fedmem.routing.tree import train_tree
from fedmem.storage.files import Files
from fedmem.training.bank_state import BankStream
from fedmem.training.corpus import Corpus
from fedmem.training.folder import load_anchor, save_anchor
from fedmem.training.loop import Trainer
from fedmem.training.packed_dataset import plain_rows
from fedmem.training.plans import AnchorPlan, BankPlan, flat
from fedmem.training.release import Release
from fedmem.training.resumable import ResumableRun
from fedmem.training.seeds import derived
from fedmem.training.state import TrainingTrace, Watch, claim, read_json, write_json

RESULT = "training.json"

Facts = dict[str, Any]


def train_anchor(corpus: Corpus, folder: Path, plan: AnchorPlan, watch: Watch) -> Facts:
    """Train tokenizer and anchor into `folder`; gives what `training.json` holds.

    Raises VersionMismatch for a folder of other inputs, Busy while another process trains there.
    """
    check_length(config(plan.preset, plan.vocabulary), plan.length)
    inputs = {"command": "anchor train", "corpus": corpus.digest} | flat(plan)
    claimed, seed = claim(folder, inputs), derived(plan.seed, "pretrain")
    if (folder / RESULT).exists():
        return read_facts(folder)
    with ResumableRun(folder / "state", claimed, "anchor") as run:
        tokenizer = _tokenizer(folder / "state" / "tokenizer.json", corpus, plan.vocabulary)
        train, heldout = (plain_rows(tokenizer, texts, plan.length) for texts in (corpus.train, corpus.heldout))
        model = new_anchor(plan.preset, tokenizer.get_vocab_size(), derived(plan.seed, "anchor"))
        trace = run.drive(Trainer(model, train.packed, plan.settings, seed), heldout, watch)
        save_anchor(folder, model, tokenizer)
        facts = told(inputs, trace, train.tokens(plan.settings.steps, plan.settings.batch, seed))
        write_json(folder / RESULT, facts | {"parameters": sum(p.numel() for p in model.parameters())})
        run.remove_state()
    return read_facts(folder)


def build_bank(corpus: Corpus, anchor: Path, out: Path, plan: BankPlan, embedder: Embedder) -> Release:
    """A release of the anchor in a folder with a tree of the corpus and new blocks, which change nothing yet.

    Raises as `load_anchor`, and UsageError for a kind, a placement or a tree that does not exist.
    """
    model, tokenizer = load_anchor(anchor)
    layers = len(sites_of(model))
    each = [widths(width, layers, plan.placement) for width in plan.widths]
    spec = spec_for(model, plan.kind, plan.branching, each)
    vectors_ND = embedder.embed(corpus.train)
    tree = train_tree(vectors_ND, branching=plan.branching, levels=spec.levels, seed=derived(plan.seed, "tree"))
    bank = BankStream.new(spec, derived(plan.seed, "bank"))
    return Release.write(out / "releases", model, tokenizer, tree, embedder.digest, bank)


def read_facts(folder: Path) -> Facts:
    """What `training.json` of a finished training holds."""
    facts: Facts = read_json(folder / RESULT)
    return facts


def told(inputs: Facts, trace: TrainingTrace, tokens: int) -> Facts:
    """What a training has to tell: its inputs, curve, seconds, tokens and tokens a second."""
    speed = tokens / trace.seconds if trace.seconds else None
    figures = {"seconds": trace.seconds, "tokens": tokens, "tokens_per_second": speed}
    return {"inputs": inputs, "curve": trace.curve} | figures


def check_length(anchor: PretrainedConfig, length: int) -> None:
    """Raise UsageError for rows that the anchor cannot read."""
    context = anchor.max_position_embeddings
    if not 2 <= length <= context:
        raise UsageError(f"A row has 2 to {context} tokens with this anchor, not {length}.")


def _tokenizer(path: Path, corpus: Corpus, vocabulary: int) -> Tokenizer:
    """The anchor's tokenizer, trained once. Raises UsageError for a vocabulary too small for the bytes."""
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = train_tokenizer(corpus.train, vocabulary)
    if tokenizer.get_vocab_size() > vocabulary:
        raise UsageError(f"A vocabulary needs at least {tokenizer.get_vocab_size()} entries: the bytes and two more.")
    Files().replace(path, tokenizer.to_str(pretty=True).encode())
    return tokenizer
