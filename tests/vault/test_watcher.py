"""The thread that notices erasures for idle vaults."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.errors import PartialErasure
from tests.vault.test_core import note

REPOSITORY = Path(__file__).parents[2]


IDLE = """
import sys, time
from fedmem.vault.vault import Vault
vault = Vault.open(sys.argv[1], subject="alice")
block = vault.blocks()[0].id
assert vault.block_rows(block)
print("holds", flush=True)
sys.stdin.readline()
print(len(vault.core.table.keys), len(vault.blocks()), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("is_stopped", [False, True])
def test_an_idle_program_lets_go_by_itself_and_a_stopped_one_makes_it_partial(vaults: Any, is_stopped: bool) -> None:
    vault = vaults.create()
    vault.add_records([note("goes"), note("stays", "boat")])
    vaults.block(vault, "garden")
    command = [sys.executable, "-c", IDLE, str(vault.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as idle:
        try:
            assert idle.stdout.readline() == "holds\n"
            if is_stopped:
                os.kill(idle.pid, signal.SIGSTOP)
            planned = erasure.plan(vault, Scope.topic("garden"))
            if is_stopped:
                with pytest.raises(PartialErasure):
                    erasure.execute(vault, planned, planned.digest)
                os.kill(idle.pid, signal.SIGCONT)
                time.sleep(0.5)
                assert [outcome.state for outcome in erasure.resume(vault)] == ["completed"]
            else:
                assert erasure.execute(vault, planned, planned.digest).state == "completed"
            print(file=idle.stdin, flush=True)
            assert idle.stdout.readline() == "0 0\n"  # no key was left, and it reads on
        finally:
            idle.kill()
