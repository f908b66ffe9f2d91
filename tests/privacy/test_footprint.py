"""The memory limit: a micro-batch from public sizes, refusals before a charge, and the peak of a real process."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from fedmem.errors import Refused
from fedmem.memory.spec import LayerShape, MemorySpec
from fedmem.privacy.footprint import MOST, PROCESS, fit_footprint, kept_bytes, per_sequence_bytes, record_bytes

SHAPE = LayerShape(d_model=64, ffn=192, heads=2, kv_heads=2, head_dim=32, gated=True, activation="silu")
SPEC = MemorySpec.single(SHAPE, 2, 16)
MB = 1 << 20


def test_a_higher_limit_never_gives_less() -> None:
    found = [fit_footprint(PROCESS + extra * MB, SPEC, 4096, 128) for extra in range(30, 800, 10)]
    sizes = [one.micro_batch for one in found]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, MOST)
    assert all(one.room > 0 for one in found)


def test_half_of_what_is_left_is_the_records() -> None:
    sequence = per_sequence_bytes(SPEC, 4096, 128)
    for extra in (40, 100, 200):
        one = fit_footprint(PROCESS + extra * MB, SPEC, 4096, 128)
        assert one.micro_batch * sequence <= one.room


def test_the_least_limit_that_is_named_is_enough() -> None:
    with pytest.raises(Refused, match="at least") as caught:
        fit_footprint(MB, SPEC, 16384, 512)
    assert caught.value.exit_code == 4
    named = re.search(r"at least (\d+) MB", str(caught.value))
    assert named is not None
    least = int(named[1])
    assert fit_footprint(least * MB, SPEC, 16384, 512).micro_batch == 1
    with pytest.raises(Refused):
        fit_footprint((least - 1) * MB, SPEC, 16384, 512)


@pytest.mark.parametrize("change", ["vocabulary", "length", "width", "layers"])
def test_each_size_counts(change: str) -> None:
    other = {
        "vocabulary": lambda: per_sequence_bytes(SPEC, 8192, 128),
        "length": lambda: per_sequence_bytes(SPEC, 4096, 256),
        "width": lambda: per_sequence_bytes(MemorySpec.single(SHAPE, 2, 512), 4096, 128),
        "layers": lambda: per_sequence_bytes(replace(SPEC, widths=((16,) * 12,)), 4096, 128),
    }
    assert other[change]() > 1.3 * per_sequence_bytes(SPEC, 4096, 128)


def test_records_count_by_their_text_and_their_tokens() -> None:
    assert record_bytes("é" * 10) == 2 * record_bytes("e" * 10)
    assert kept_bytes(3, 128) == 3 * 128 * 8


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.memory.sites import spec_for
from fedmem.policy.files import Topic
from fedmem.privacy.footprint import fit_footprint
from fedmem.privacy.gradients import RuntimeOptions
from fedmem.device.learning import LearnSettings, charge, private_spec, train
from fedmem.privacy.plan import PrivacyPlan
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release
from fedmem.vault.vault import NewRecord, Vault

def peak():
    # Not ru_maxrss where there is better: a process inherits that from the one that started it.
    if Path("/proc/self/status").exists():
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

limit = int(sys.argv[2])
tokenizer = train_tokenizer(["a plain public text", "another public text"], vocab_size=280)
model = new_anchor("nano", 280, 0)
state = BankState.new(spec_for(model, "ffn", 2, (4, 2)), 0)
tree = Tree(2, 2, (np.eye(4, 8, dtype=np.float32)[:2], np.eye(4, 8, dtype=np.float32)))
release = Release.write(Path(sys.argv[1]), model, tokenizer, tree, "none", state.stream())
settings = LearnSettings(width=64, length=512)
footprint = fit_footprint(limit, private_spec(release, settings), 280, settings.length)
plan = PrivacyPlan(1.0, 1, clip=0.1, noise_multiplier=4.0, divisor=4.0, delta=1e-5, record_cap=100)
with Vault.create(sys.argv[1] + "/v", subject="ana") as vault:
    vector = np.eye(8, dtype=np.float32)
    texts = ["a long record " * 900, *("a plain public record " * 90 for _ in range(16))]
    vault.add_records([NewRecord(t, "health", (0, i % 4), vector[i % 8], release.digest) for i, t in enumerate(texts)])
    charged = charge(vault, release, Topic("health", 8.0, 1e-5), plan, settings=settings, record_memory=footprint.room)
    train(charged, RuntimeOptions(footprint.micro_batch))
    limited = peak()
    train(charged, RuntimeOptions(16))
print(footprint.micro_batch, limited, peak())
"""


def test_a_real_process_stays_below_its_limit(tmp_path) -> None:
    """And needs more without it, so that the limit is what holds it."""
    limit = PROCESS + 90 * MB
    told = {"FEDMEM_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), str(limit)], capture_output=True, text=True, env=told
    )
    assert result.returncode == 0, result.stderr
    micro_batch, limited, free = map(int, result.stdout.split())
    assert 1 <= micro_batch < MOST
    assert limited < limit
    assert free > limited + 50 * MB
