"""The toy federation of the tests of `fedmem.federation`."""

from tests.federation.conftest import toy

__all__ = ["toy"]
