"""Make an anchor and a new bank, each in a folder and from public text alone.

Training a bank is `fedmem.coordinator.bank_training`.

Invariants
- The result in a folder is a function of the inputs. The same call again resumes, or returns the finished result.
- Tokenizer, tree and anchor see no held-out text.

    train_anchor(corpus, folder, AnchorPlan("tiny", 4096, 256, settings, seed=7), Watch())
    release = build_bank(corpus, folder, bank, BankPlan("ffn", 8, (32, 8, 2), "uniform", seed=7), StaticEmbedder())
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PretrainedConfig

from fedmem.anchor.presets import config, new_anchor
from fedmem.anchor.tokenizer import load_tokenizer, train_tokenizer
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
from fedmem.training.plans import AnchorPlan, BankPlan, plan_inputs
from fedmem.training.release import Release
from fedmem.training.resumable import ResumableRun
from fedmem.training.seeds import derive_seed
from fedmem.training.state import TrainingTrace, Watch, claim, read_json, write_json

RESULT = "training.json"

Facts = dict[str, Any]


def train_anchor(corpus: Corpus, folder: Path, plan: AnchorPlan, watch: Watch) -> Facts:
    """Train a tokenizer and an anchor into a folder.

    Args:
        corpus: public texts.
        folder: folder of this training. It holds the state, and at the end `anchor/`, `tokenizer.json` and
            `training.json`.
        plan: preset, vocabulary, row length, settings and seed.
        watch: callbacks for progress and figures.

    Returns:
        The content of `training.json`.

    Raises:
        VersionMismatch: the folder belongs to other inputs.
        Busy: another process trains in this folder.
        UsageError: the row length does not fit the anchor, or the vocabulary is too small.
    """
    check_length(config(plan.preset, plan.vocabulary), plan.length)
    inputs = {"command": "anchor train", "corpus": corpus.digest} | plan_inputs(plan)
    inputs_digest, seed = claim(folder, inputs), derive_seed(plan.seed, "pretrain")
    if (folder / RESULT).exists():
        return read_facts(folder)
    with ResumableRun(folder / "state", inputs_digest, "anchor") as run:
        tokenizer = _load_or_train_tokenizer(folder / "state" / "tokenizer.json", corpus, plan.vocabulary)
        train, heldout = (plain_rows(tokenizer, texts, plan.length) for texts in (corpus.train, corpus.heldout))
        model = new_anchor(plan.preset, tokenizer.get_vocab_size(), derive_seed(plan.seed, "anchor"))
        trace = run.drive(Trainer(model, train.packed, plan.settings, seed), heldout, watch)
        save_anchor(folder, model, tokenizer)
        facts = training_facts(inputs, trace, train.tokens(plan.settings.steps, plan.settings.batch, seed))
        write_json(folder / RESULT, facts | {"parameters": sum(p.numel() for p in model.parameters())})
        run.remove_state()
    return read_facts(folder)


def build_bank(corpus: Corpus, anchor: Path, out: Path, plan: BankPlan, embedder: Embedder) -> Release:
    """Build a release from an anchor: train a tree on the corpus, and add new blocks, which change no output yet.

    Args:
        corpus: public texts; the tree is trained on their training part.
        anchor: folder of the anchor, as `load_anchor` reads it.
        out: the release is written below `out/releases`.
        plan: kind, branching, mean widths by level, placement of rows, and seed.
        embedder: computes the vectors for the tree.

    Returns:
        The new release.

    Raises:
        UsageError: kind, placement or tree do not exist.
        FedmemError: as `load_anchor`.
    """
    model, tokenizer = load_anchor(anchor)
    layers = len(sites_of(model))
    level_widths = [widths(width, layers, plan.placement) for width in plan.widths]
    spec = spec_for(model, plan.kind, plan.branching, level_widths)
    vectors_ND = embedder.embed(corpus.train)
    tree = train_tree(vectors_ND, branching=plan.branching, levels=spec.levels, seed=derive_seed(plan.seed, "tree"))
    bank = BankStream.new(spec, derive_seed(plan.seed, "bank"))
    return Release.write(out / "releases", model, tokenizer, tree, embedder.digest, bank)


def read_facts(folder: Path) -> Facts:
    """Return the content of `training.json` of a finished training.

    Args:
        folder: the folder of a training that has finished.

    Raises:
        VerificationFailed: the file is damaged.
    """
    facts: Facts = read_json(folder / RESULT)
    return facts


def training_facts(inputs: Facts, trace: TrainingTrace, tokens: int) -> Facts:
    """Return the facts of a training: inputs, curve, seconds, tokens, and tokens per second (None after 0 seconds).

    Args:
        inputs: the inputs of the training, which name its command, corpus and plan.
        trace: curve and seconds of the training.
        tokens: number of tokens that the training read, repeats included.
    """
    speed = tokens / trace.seconds if trace.seconds else None
    figures = {"seconds": trace.seconds, "tokens": tokens, "tokens_per_second": speed}
    return {"inputs": inputs, "curve": trace.curve} | figures


def check_length(anchor: PretrainedConfig, length: int) -> None:
    """Raise UsageError if the anchor cannot read rows of `length` tokens.

    Args:
        anchor: the configuration of the anchor.
        length: tokens of a row, from 2 to the anchor's context.
    """
    context = anchor.max_position_embeddings
    if not 2 <= length <= context:
        raise UsageError(f"A row has 2 to {context} tokens with this anchor, not {length}.")


def _load_or_train_tokenizer(path: Path, corpus: Corpus, vocabulary: int) -> Tokenizer:
    """Return the tokenizer at `path`; train and save it if the file is missing.

    Raises UsageError if the vocabulary is too small for all bytes.
    """
    if path.exists():
        return load_tokenizer(path)
    tokenizer = train_tokenizer(corpus.train, vocabulary)
    if tokenizer.get_vocab_size() > vocabulary:
        raise UsageError(f"A vocabulary needs at least {tokenizer.get_vocab_size()} entries: the bytes and two more.")
    Files().replace(path, tokenizer.to_str(pretty=True).encode())
    return tokenizer
