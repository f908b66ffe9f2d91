"""The private fetch: the block of a topic and release, read from one buffer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fedmem.device.private_fetch import block_for, private_sources, shared_and_private, tensors_in
from fedmem.storage.private_memory import PrivateBuffer
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo, Vault


@pytest.fixture
def vault(home: Path) -> Iterator[Vault]:
    with Vault.create(home / "v", subject="ana") as opened:
        yield opened


def buffer_of(tensors: dict[str, torch.Tensor]) -> PrivateBuffer:
    data = save(tensors)
    buffer = PrivateBuffer(len(data))
    memoryview(buffer)[:] = data
    return buffer


def test_the_newest_block_of_topic_and_release_is_taken(vault: Vault, finish_block: Callable[..., BlockInfo]) -> None:
    first, second = (finish_block(vault, "health", "r1") for _ in range(2))
    other = finish_block(vault, "health", "r2")
    assert second.version > first.version
    assert block_for(vault, "health", "r1") == second
    assert block_for(vault, "health", "r2") == other
    for topic, release in (("health", "r3"), ("finance", "r1"), (None, "r1")):
        assert block_for(vault, topic, release) is None


def test_tensors_are_views_of_the_buffer() -> None:
    written = {"rows": torch.arange(6.0).view(2, 3), "empty": torch.empty(0, 4), "one": torch.tensor([7.0])}
    buffer = buffer_of(written)
    tensors = tensors_in(buffer)
    assert {name: value.tolist() for name, value in tensors.items()} == {n: v.tolist() for n, v in written.items()}
    tensors["one"].zero_()
    assert tensors_in(buffer)["one"].tolist() == [0.0]


def test_rows_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        tensors_in(buffer_of({"rows": torch.ones(2, dtype=torch.float16)}))


def test_private_rows_come_after_the_shared_ones_and_apply_to_every_item(
    vault: Vault, finish_block: Callable[..., BlockInfo], release: Release
) -> None:
    block = finish_block(vault, "health", release.digest, scale=1.0)
    private = private_sources(vault, release, [block])
    sources = shared_and_private(release, [(0, 1), (1, 2)], private)
    assert sources[1:] == private
    assert [source.items for source in sources] == [2, None]
    assert private_sources(vault, release, []) == []
