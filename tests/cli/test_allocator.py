"""The allocator keeps buffers, and a system without glibc's call is left as it is."""

import ctypes
import subprocess
import sys

import pytest

from fedmem.cli import allocator

# 40 MB is above every threshold that glibc chooses by itself.
FAULTS = """
import resource, sys
from fedmem.cli.allocator import keep_buffers
if sys.argv[1] == "keep":
    assert keep_buffers()
b"x" * (40 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * (40 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word: str) -> int:
    result = subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_a_buffer_that_is_freed_is_used_again_without_page_faults() -> None:
    assert 10 * page_faults("keep") < page_faults("as it is")


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_a_c_library_that_cannot_be_opened_changes_nothing(monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(allocator.ctypes, "CDLL", fail)
    assert not allocator.keep_buffers()


@pytest.mark.parametrize("answers", [(0, 1), (1, 0)])
def test_a_threshold_that_was_not_set_is_told(monkeypatch: pytest.MonkeyPatch, answers: tuple[int, int]) -> None:
    left = list(answers)
    library = type("Library", (), {"mallopt": staticmethod(lambda name, value: left.pop(0))})
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: library)
    assert not allocator.keep_buffers()
    assert left == []
