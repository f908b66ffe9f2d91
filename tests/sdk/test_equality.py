"""After erasing a block, logits are those of a vault that never held it, bit for bit, in a fresh process (I4)."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedmem.sdk.client import Client
from fedmem.training.release import Release
from fedmem.vault.vault import BlockInfo

FINANCE, HEALTH = "The rent of the flat is due on Monday", "My doctor prescribed tablets for my blood pressure"
# Opens each vault as an app does, generates, and keeps the logits of every step that an answer takes.
FRESH = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from fedmem.sdk.client import Client

folder, release, *prompts = sys.argv[1:]
for path in sorted(Path(folder, "vaults").iterdir()):
    kept = {}
    with Client.open("ana", path=path, keystore="keyfile", release=release) as client:
        for number, prompt in enumerate(prompts):
            client.generate(prompt, max_new_tokens=1)
            hook = client._answerer.model.register_forward_hook(
                lambda model, given, out: kept.update({f"{number}-{len(kept):03}": out.logits.detach().clone()})
            )
            client.generate(prompt, max_new_tokens=4)
            hook.remove()
    save_file(kept, Path(folder, path.name + ".safetensors"))
"""


@pytest.fixture
def learned(release: Release, finish_block: Callable[..., BlockInfo], tmp_path: Path) -> Callable[..., Client]:
    """A client whose vault learned these topics in this order, as a vault of the test."""

    def learn(name: str, topics: tuple[str, ...], scale: float) -> Client:
        client = Client.open("ana", path=tmp_path / "vaults" / name, keystore="keyfile", release=release)
        for topic in topics:
            client.add({"health": HEALTH, "finance": FINANCE}[topic], topic=topic)
            # Another block for each topic and seed; that of a topic is the same in every vault of a seed.
            finish_block(client._vault, topic, release.digest, scale=scale * (1 if topic == "health" else -0.7))
        return client

    return learn


def test_in_a_fresh_process_over_orders_and_seeds(
    learned: Callable[..., Client], release: Release, tmp_path: Path
) -> None:
    for seed, scale in enumerate((1.0, 0.3)):
        learned(f"never-{seed}", ("finance",), scale).close()
        learned(f"holds-{seed}", ("finance", "health"), scale).close()
        for order in itertools.permutations(("finance", "health", "erase")):
            if order.index("erase") < order.index("health"):
                continue
            at = order.index("erase")
            with learned(f"erased-{seed}-{'-'.join(order)}", order[:at], scale) as client:
                client.erase.plan(topic="health").execute()
            learned(f"erased-{seed}-{'-'.join(order)}", order[at + 1 :], scale).close()
    command = [sys.executable, "-c", FRESH, tmp_path, release.root, HEALTH, FINANCE]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    logits = {path.stem: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert len(logits) == 2 * (2 + 3)
    for name, found in logits.items():
        expected = logits[f"never-{name.split('-')[1]}"]
        same = found.keys() == expected.keys() and all(torch.equal(found[step], expected[step]) for step in expected)
        assert same == (not name.startswith("holds")), name


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_weights_that_were_merged_and_taken_off_again_are_not_the_same(release: Release, seed: int) -> None:
    generator, tokens = torch.Generator().manual_seed(seed), torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        plain, merged = release.anchor()(tokens).logits, release.anchor()
        adapters = [
            0.05
            * torch.randn(*weight.shape[:1], 4, generator=generator)
            @ torch.randn(4, weight.shape[1], generator=generator)
            for weight in (layer.mlp.down_proj.weight for layer in merged.model.layers)
        ]
        for layer, adapter in zip(merged.model.layers, adapters, strict=True):
            layer.mlp.down_proj.weight += adapter
        assert not torch.allclose(merged(tokens).logits, plain)
        for layer, adapter in zip(merged.model.layers, adapters, strict=True):
            layer.mlp.down_proj.weight -= adapter
        found = merged(tokens).logits
    assert torch.allclose(found, plain, atol=1e-3)
    assert not torch.equal(found, plain)
