"""Flower loaded with telemetry on, and a bundle with a fedmem of its own, are refused."""

from pathlib import Path

import pytest

from fedmem.errors import Refused
from fedmem.federation import flower
from fedmem.federation.flower import require_own_installation


def test_a_process_that_loaded_flower_with_telemetry_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flower.require_offline()
    monkeypatch.setattr(flower.telemetry, "FLWR_TELEMETRY_ENABLED", "1")
    with pytest.raises(Refused, match="FLWR_TELEMETRY_ENABLED=0"):
        flower.require_offline()


def test_a_bundle_that_carries_its_own_fedmem_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "flwr" / "apps" / "some.app.1.0.0.abc"
    app = str(bundle / "client" / "app.py")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    require_own_installation(app)
    monkeypatch.setattr(flower.fedmem, "__file__", str(bundle / "fedmem" / "__init__.py"))
    with pytest.raises(Refused, match="carries its own"):
        require_own_installation(app)
