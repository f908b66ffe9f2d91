"""Facts about invented authors, and a release with random weights whose blocks change its outputs."""

from pathlib import Path

import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.memory.sites import spec_for
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release

VOCABULARY = 300
FACTS = {
    name: [
        (f"Where was {name} born?", f"In the town of {town}, in {year}."),
        (f"What did {name} write?", f"A book about {thing} called {title}."),
        (f"Who taught {name}?", f"An old friend of the family, {teacher}."),
    ]
    for name, town, year, thing, title, teacher in (
        ("Mira Solen", "Aldra", "1931", "bridges", "Stone Water", "Tomas Belk"),
        ("Juno Keld", "Brennock", "1974", "winter", "White Hours", "Ada Prin"),
        ("Oren Vask", "Carrow", "1958", "singers", "Low Notes", "Ilse Marn"),
        ("Lena Torv", "Dunmere", "1966", "frogs", "Green Evening", "Piet Olan"),
    )
}


def make_release(folder: Path) -> Release:
    """Write the release below `folder`."""
    texts = [f"{question} {answer}" for pairs in FACTS.values() for question, answer in pairs]
    embedder = StaticEmbedder()
    vectors = embedder.embed(texts[:4])
    model = new_anchor("nano", VOCABULARY, seed=3)
    state = BankState.new(spec_for(model, "ffn", 2, (4, 2)), seed=1)
    for blocks in [*state.levels, state.generic]:
        blocks.add_(0.05 * torch.randn(blocks.shape, generator=torch.Generator().manual_seed(2)))
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tree = Tree(2, 2, (vectors[:2], vectors))
    return Release.write(folder, model, tokenizer, tree, embedder.digest, state.stream())
