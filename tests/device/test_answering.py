"""Answers: what is in them, what is left after them, and what ends them."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedmem.device.answering import Answerer
from fedmem.errors import Busy, UsageError, VersionMismatch
from fedmem.memory.block import make_source
from fedmem.memory.spec import MemorySpec
from fedmem.privacy.plan import PrivacyPlan
from fedmem.sdk.client import Client
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo

HEALTH = "My doctor prescribed new tablets for my blood pressure after the visit on Monday."
PROMPT = "My doctor prescribed tablets and the diagnosis of my blood pressure is"


def opened(release: Release) -> Client:
    return Client.open("ana", keystore="keyfile", release=release)


def oracle(release: Release, client: Client, prompt: str, count: int, extra: list[torch.Tensor]) -> str:
    """The slow obvious way: one full forward pass a token, no cache."""
    from fedmem.memory.attach import attach

    model, path = release.anchor(), client._path(client._embedder.embed([prompt])[0])
    ids = [1, *release.tokenizer.encode(prompt).ids]
    start = len(ids)
    private = MemorySpec.single(release.spec.shape, release.spec.layers, width=4)
    sources = [
        make_source(release.spec, release.bank.fetch_many([path])),
        *(make_source(private, x[None]) for x in extra),
    ]
    with torch.no_grad(), attach(model).using(*sources):
        for _ in range(count):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == 1:
                break
            ids.append(token)
    text: str = release.tokenizer.decode(ids[start:])
    return text


def test_streamed_equals_whole_equals_the_slow_way(release: Release) -> None:
    with opened(release) as client:
        whole = client.generate(PROMPT, max_new_tokens=12)
        assert "".join(client.generate(PROMPT, max_new_tokens=12, stream=True)) == whole
        assert oracle(release, client, PROMPT, 12, []).startswith(whole)
        assert whole


def test_the_private_block_of_the_prompts_topic_answers(
    release: Release, finish_block: Callable[..., BlockInfo]
) -> None:
    from safetensors.torch import load

    with opened(release) as client:
        without = client.generate(PROMPT, max_new_tokens=12)
        client.add(HEALTH, topic="health")
        block = finish_block(client._vault, "health", release.digest, scale=1.0)
        extra = load(bytes(client._vault.block_rows(block.id)))["rows"]
        answer = client.generate(PROMPT, max_new_tokens=12)
        assert answer != without
        assert oracle(release, client, PROMPT, 12, [extra]).startswith(answer)
        other = "An old bridge of stone"
        assert oracle(release, client, other, 8, []).startswith(client.generate(other, max_new_tokens=8))


def test_nothing_private_stays_attached(release: Release, finish_block: Callable[..., BlockInfo]) -> None:
    with opened(release) as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", release.digest, scale=1.0)
        pieces = client.generate(PROMPT, max_new_tokens=12, stream=True)
        next(pieces)
        answerer = client._answerer
        assert answerer is not None
        tokens = torch.tensor([[1, 40, 41]])
        with torch.no_grad():
            assert torch.equal(answerer.model(tokens).logits, release.anchor()(tokens).logits)


def test_a_block_of_another_release_is_not_mixed_in(release: Release, finish_block: Callable[..., BlockInfo]) -> None:
    with opened(release) as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", "f" * 64, scale=1.0)
        with pytest.raises(VersionMismatch):
            client.generate(PROMPT)


@pytest.mark.parametrize("limit", [0, -1, 10_000])
def test_impossible_lengths(release: Release, limit: int) -> None:
    with opened(release) as client, pytest.raises(UsageError):
        client.generate(PROMPT, max_new_tokens=limit)


def test_a_long_prompt_keeps_its_end(release: Release) -> None:
    with opened(release) as client:
        assert isinstance(client.generate("stone " * 3000 + PROMPT, max_new_tokens=4), str)


def test_an_erasure_ends_the_answer(release: Release, finish_block: Callable[..., BlockInfo]) -> None:
    with opened(release) as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", release.digest, scale=1.0)
        pieces = client.generate(PROMPT, max_new_tokens=12, stream=True)
        next(pieces)
        client.erase.plan(topic="health").execute()
        with pytest.raises(Busy):
            list(pieces)


def test_a_stream_ends_when_its_client_is_closed(release: Release, finish_block: Callable[..., BlockInfo]) -> None:
    with opened(release) as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", release.digest, scale=1.0)
        fresh, begun = (client.generate(PROMPT, max_new_tokens=12, stream=True) for _ in range(2))
        next(begun)
    for pieces in (fresh, begun):
        with pytest.raises(UsageError, match="closed"):
            next(pieces)
        assert list(pieces) == []


@pytest.mark.parametrize("write", [True, False])
def test_a_stream_that_outlived_its_client_ends_after_an_erasure(
    release: Release, finish_block: Callable[..., BlockInfo], write: bool
) -> None:
    with opened(release) as client:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", release.digest, scale=1.0)
    reader = Client.open("ana", keystore="keyfile", release=release, write=write)
    pieces = reader.generate(PROMPT, max_new_tokens=12, stream=True)
    next(pieces)
    if write:
        reader.close()
    with opened(release) as client:
        client.erase.plan(topic="health").execute()
    with pytest.raises(UsageError if write else Busy):
        next(pieces)
    reader.close()


def test_a_stream_goes_on_in_another_thread(release: Release, finish_block: Callable[..., BlockInfo]) -> None:
    with opened(release) as client, ThreadPoolExecutor(1) as pool:
        client.add(HEALTH, topic="health")
        finish_block(client._vault, "health", release.digest, scale=1.0)
        whole = client.generate(PROMPT, max_new_tokens=12)
        pieces = client.generate(PROMPT, max_new_tokens=12, stream=True)
        begun = next(pieces) + pool.submit(next, pieces).result()
        assert begun + "".join(pieces) == whole
        pieces = client.generate(PROMPT, max_new_tokens=12, stream=True)
        next(pieces)
        pool.submit(client.erase.plan(topic="health").execute).result()
        with pytest.raises(Busy):
            pool.submit(next, pieces).result()


@pytest.mark.parametrize("given", ["folder", "object"])
def test_threads_get_the_answers_to_their_own_prompts(
    release: Release, finish_block: Callable[..., BlockInfo], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    prompts = {"health": PROMPT, "finance": "The rent of the flat and the salary on my bank account are"}
    made: list[Answerer] = []
    init = Answerer.__init__
    monkeypatch.setattr(Answerer, "__init__", lambda self, *given: (init(self, *given), made.append(self))[0])
    before = sys.getswitchinterval()
    with Client.open("ana", keystore="keyfile", release=release) as client:
        for topic, scale in (("health", 1.0), ("finance", -0.7)):
            client.add(prompts[topic], topic=topic)
            finish_block(client._vault, topic, release.digest, scale=scale)
        expected = [client.generate(prompt, max_new_tokens=8) for prompt in prompts.values()]
    assert expected[0] != expected[1]
    made.clear()
    shared = release.root if given == "folder" else release
    with Client.open("ana", keystore="keyfile", release=shared) as client, ThreadPoolExecutor(4) as pool:
        sys.setswitchinterval(1e-6)
        try:
            every = list(pool.map(lambda prompt: client.generate(prompt, max_new_tokens=8), [*prompts.values()] * 6))
        finally:
            sys.setswitchinterval(before)
    assert every == expected * 6
    assert len(made) == 1


def test_learn_then_answer(release: Release) -> None:
    with opened(release) as client:
        for number in range(6):
            client.add(f"{HEALTH} Visit {number}.", topic="health")
        plan = PrivacyPlan(0.5, 2, 0.1, 4.0, 3.0, 1e-5, 100)
        block = client.learn("health", plan)
        assert (block.topic, block.release) == ("health", release.digest)
        assert client.privacy.budget().epsilon == pytest.approx(plan.epsilon(), abs=1e-6)
        assert isinstance(client.generate(PROMPT, max_new_tokens=4), str)
