"""Sources belong to the thread or task that uses them: neither another's block, nor the bare anchor by accident."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedmem.errors import UsageError
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source, make_source
from tests.memory.models import KINDS, model_of, some_fetch, some_tokens, spec_of

IDS = some_tokens(1, 6)
HOW = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}


@pytest.fixture
def switching():
    """Threads that take turns far more often than they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def logits(model, memory, *sources):
    with torch.no_grad(), memory.using(*sources):
        return model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_each_thread_gets_its_own_block(kind, switching):
    model = model_of("llama")
    bare, memory, spec = model(IDS).logits, attach(model), spec_of(model, kind)
    sources = [make_source(spec, some_fetch(spec, seed=seed, scale=0.3)) for seed in range(2)]
    start = threading.Barrier(4)

    def work(number):
        start.wait()  # The sites are hooked by whoever comes first.
        return [logits(model, memory, sources[number]) for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, [0, 1, 0, 1]))  # two threads share a source
    expected = [logits(model, memory, one) for one in sources]
    assert not torch.allclose(*expected, atol=1e-3)
    for number, each in enumerate(found):
        for got in each:
            torch.testing.assert_close(got, expected[number % 2], atol=1e-5, rtol=0)
    assert torch.equal(model(IDS).logits, bare)


def test_tasks_have_their_own_block():
    model = model_of("llama")
    memory, spec = attach(model), spec_of(model)
    sources = [make_source(spec, some_fetch(spec, seed=seed)) for seed in range(2)]

    async def work(number):
        found = []
        with memory.using(sources[number]):  # no_grad belongs to the thread, so tasks must not enter it in turns
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(model(IDS).logits)
                # A worker thread of the task has the task's sources.
                found.append(await asyncio.to_thread(lambda: model(IDS).logits.detach()))
        return found

    async def both():
        return await asyncio.gather(work(0), work(1))

    for number, each in enumerate(asyncio.run(both())):
        expected = logits(model, memory, sources[number])
        assert all(torch.equal(got, expected) for got in each)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_thread_that_generates_without_sources_is_refused(family):
    model = model_of(family)
    memory, spec = attach(model), spec_of(model)
    with ThreadPoolExecutor(1) as pool, memory.using(make_shared_source(spec, some_fetch(spec)[0])):
        answer = pool.submit(model.generate, IDS, **HOW)
    with pytest.raises(UsageError, match="using"):
        answer.result()


def test_generation_is_refused_outside_of_using_and_bare_inside_of_an_empty_one():
    model = model_of("llama")
    expected, memory = model.generate(IDS, **HOW), attach(model)
    with pytest.raises(UsageError, match="using"):
        model.generate(IDS, **HOW)
    with memory.using():
        assert torch.equal(model.generate(IDS, **HOW), expected)
    memory.detach()
    assert torch.equal(model.generate(IDS, **HOW), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_a_cache_is_seen_however_it_is_passed(family):
    model = model_of(family)
    given = {"llama": (None, None), "gpt2": ()}[family]  # what stands between the tokens and the cache
    cache = model(IDS, use_cache=True).past_key_values
    memory, token = attach(model), IDS[:, -1:]
    for args, how in (((*given, cache), {}), ((), {"past_key_values": cache})):
        with pytest.raises(UsageError, match="using"):
            model(token, *args, **how)
    with memory.using():
        model(token, *given, cache)


def test_detaching_before_any_use_leaves_no_hook():
    model = model_of("llama")
    attach(model).detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model._forward_pre_hooks_with_kwargs


def test_using_ends_with_an_exception_and_gives_back_what_was_outside():
    model = model_of("llama")
    memory, spec = attach(model), spec_of(model)
    outer, inner = (make_source(spec, some_fetch(spec, seed=seed)) for seed in range(2))
    expected = logits(model, memory, outer)
    with torch.no_grad(), memory.using(outer):
        with pytest.raises(KeyError), memory.using(inner):
            raise KeyError
        assert torch.equal(model(IDS).logits, expected)


@torch.no_grad()
def test_a_model_that_was_compiled_before_its_first_use_sees_the_memory():
    model = model_of("llama")
    memory, spec = attach(model), spec_of(model)
    compiled = torch.compile(model, backend="eager")
    bare = compiled(IDS).logits
    for seed in range(2):
        one = make_source(spec, some_fetch(spec, seed=seed))
        with memory.using(one):
            got = compiled(IDS).logits
        torch.testing.assert_close(got, logits(model, memory, one), atol=1e-5, rtol=0)
        assert not torch.allclose(got, bare, atol=1e-3)
    torch.testing.assert_close(compiled(IDS).logits, bare, atol=1e-6, rtol=0)
