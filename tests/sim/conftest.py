"""The toy federation of the federation's tests."""

from tests.federation.conftest import toy

__all__ = ["toy"]
