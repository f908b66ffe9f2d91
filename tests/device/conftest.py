"""What tests of a device share."""

from tests.sdk.conftest import finish_block, home, release

__all__ = ["finish_block", "home", "release"]
