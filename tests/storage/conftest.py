"""The failing file layer of the vault's tests."""

from tests.vault.conftest import faults

__all__ = ["faults"]
