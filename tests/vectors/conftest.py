"""The second verifier of receipts."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SECOND = Path(__file__).resolve().parents[2] / "client" / "verify_receipt.py"


@pytest.fixture(scope="session")
def second() -> ModuleType:
    """client/verify_receipt.py, which is never installed."""
    spec = importlib.util.spec_from_file_location("verify_receipt", SECOND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
