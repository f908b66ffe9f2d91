"""Canaries are exposed by a training without noise, and by nothing else."""

import pytest

from fedmem.eval import exposed
from fedmem.eval.throwaway import Learning
from fedmem.privacy.plan import PrivacyPlan


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_what_canaries_give_away(home, monkeypatch):
    monkeypatch.setattr(exposed, "MOST", 3)
    monkeypatch.setattr(exposed, "LEARNING", Learning(steps=40, width=32, length=32))
    noisy = PrivacyPlan(0.5, 4, 0.1, 20.0, 4.0, 1e-5, 1000)
    found = exposed.measure_exposure(noisy)
    bits, extracted = found["exposure"], found["extraction"]
    assert set(bits) == set(extracted) == {"before", "after_dp", "after_non_dp", "after_erasure"}
    # The noise is not seeded: of three canaries, one or two may stand high by chance after DP, but not all at the top.
    assert bits["after_non_dp"] > max(bits["before"] + 1.5, bits["after_dp"] + 0.5)
    assert extracted["after_non_dp"] > 0.9 > 0.5 > extracted["after_dp"]
    assert (bits["after_erasure"], extracted["after_erasure"]) == (bits["before"], extracted["before"])
    assert found["verified"] is True
    assert not [path for path in home.rglob("*") if path.is_file()]
