"""The GPU benchmark, as far as a CPU can tell: its bank on the device learns what the trainer's own does."""

import numpy as np
import pytest
import torch

from benchmarks import gpu
from fedmem.anchor.presets import new_anchor
from fedmem.errors import UsageError
from fedmem.memory.sites import spec_for

TINY = gpu.Scale("nano", 64, (4, 2), branching=2, batch=3, length=16)
CPU = torch.device("cpu")


def test_a_bank_on_the_device_learns_what_the_trainer_s_own_does():
    arms = gpu.Arms(TINY, CPU)
    own, resident = arms.memory(on_device=False), arms.memory(on_device=True)
    for _ in range(12):  # enough for steps with and without the generic block
        torch.testing.assert_close(resident.step(), own.step())
    new = arms.memory(on_device=False).bank
    for level, other, start in zip(
        [own.bank.generic, *own.bank.levels],
        [resident.bank.generic, *resident.bank.levels],
        [new.generic, *new.levels],
        strict=True,
    ):
        torch.testing.assert_close(other.blocks, level.blocks, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.moments[2], level.moments[2])
        assert not torch.equal(level.blocks, start.blocks)


def test_the_paper_s_fetch():
    with torch.device("meta"):
        model = new_anchor(gpu.PAPER.preset, gpu.PAPER.vocabulary, 0)
    spec = spec_for(model, "ffn", gpu.PAPER.branching, gpu.PAPER.widths)
    assert round(spec.fetch_size / 1e6, 2) == 18.06
    assert spec.blocks(spec.levels) >= gpu.PAPER.batch


def test_figures():
    arms = gpu.Arms(TINY, CPU)
    seconds = {"plain": np.full(5, 0.5), "memory": np.full(5, 1.0)}
    found = gpu.figures(arms, seconds, peak=1e9)
    assert found["ratio"] == {"memory_over_plain": 0.5}
    assert found["tokens_per_second"] == {"plain": 96.0, "memory": 48.0}
    assert found["share_of_peak"]["plain"] == pytest.approx(6 * arms.parameters * 96 / 1e9)
    both = arms.parameters + arms.spec.fetch_size
    assert found["share_of_peak"]["memory"] == pytest.approx(6 * both * 48 / 1e9)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12), ("NVIDIA L40", None)],
)
def test_peaks_go_by_whole_words(name, peak):
    assert gpu.stated_peak(name) == peak


def test_without_a_gpu_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="CUDA"):
        gpu.cuda()
    monkeypatch.setattr("sys.argv", ["gpu", "--json"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert "CUDA" in capsys.readouterr().err
