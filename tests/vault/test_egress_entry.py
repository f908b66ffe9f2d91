"""The description of a message: plain facts, and no vault module in the process that makes it."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest

from fedmem.vault.store.egress_entry import EgressEntry

PROGRAM = """
import json, sys
from fedmem.vault.store.egress_entry import EgressEntry
EgressEntry("train.anchor", 3, 4096, "00" * 32)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("fedmem.vault"))))
"""


def test_making_one_loads_no_other_module_of_the_vault() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["fedmem.vault", "fedmem.vault.store", "fedmem.vault.store.egress_entry"]


def test_a_line_of_an_earlier_version_has_no_rounds_and_comes_back() -> None:
    entry = EgressEntry(message="train.anchor", number=3, nbytes=4096, digest="00" * 32)
    assert (entry.rounds, entry.spend, entry.delta) == (None, {}, 0.0)
    assert EgressEntry(**asdict(entry)) == entry
    with pytest.raises(FrozenInstanceError):
        entry.number = 4  # type: ignore[misc]
