"""Answers by anchors with tokenizers of every kind: each begins as its model does, and loses no blank."""

from pathlib import Path

import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import end_of_document, start_of_document, text_ids
from fedmem.memory.sites import spec_for
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree
from fedmem.sdk.client import Client
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release
from tests.anchor.tokenizers import KINDS, TEXTS

PROMPT = "A small river</s> runs"


def release_with(kind: str, folder: Path) -> Release:
    """A release of a random anchor whose tokenizer is of this kind."""
    model, tokenizer = new_anchor("pico", 360, 7), KINDS[kind]()
    state, embedder = BankState.new(spec_for(model, "ffn", 2, (4,)), seed=1), StaticEmbedder()
    tree = Tree(2, 1, (embedder.embed(TEXTS[:2]),))
    return Release.load(Release.write(folder, model, tokenizer, tree, embedder.digest, state.stream()).root)


def greedy(release: Release, count: int) -> str:
    """The slow obvious way: whole passes, and the text of all tokens without that of the prompt."""
    tokenizer, model = release.tokenizer, release.anchor()
    ids = [start_of_document(tokenizer), *text_ids(tokenizer, [PROMPT])[0]]
    prompt = len(ids)
    with torch.no_grad():
        while len(ids) < prompt + count:
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == end_of_document(tokenizer):
                break
            ids.append(token)
    whole: str = tokenizer.decode(ids)
    return whole[len(tokenizer.decode(ids[:prompt])) :]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_suffix_of_the_whole(kind: str, tmp_path: Path) -> None:
    release = release_with(kind, tmp_path)
    with Client.open("ana", keystore="keyfile", release=release) as client:
        expected = greedy(release, 12)
        assert client.generate(PROMPT, max_new_tokens=12) == expected
        assert "".join(client.generate(PROMPT, max_new_tokens=12, stream=True)) == expected
        assert expected
