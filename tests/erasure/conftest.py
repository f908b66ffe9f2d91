"""The fixtures of tests/vault, loaded by path: importlib mode has no imports between folders of tests."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("vault_fixtures", Path(__file__).parents[1] / "vault" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

home, faults, vaults = _fixtures.home, _fixtures.faults, _fixtures.vaults
