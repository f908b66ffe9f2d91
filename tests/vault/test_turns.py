"""Turns of threads and programs: a decorated function excludes the others for as long as it runs."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fedmem.errors import Busy, Refused
from fedmem.vault.store.turns import in_turn, serialised, serialised_methods
from fedmem.vault.vault import Vault


def test_threads_take_turns_in_a_serialised_function(vaults: Any) -> None:
    vault, inside, most = vaults.create(), 0, 0

    @serialised
    def work(_: Vault) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.005)
        inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [vault] * 12))
    assert most == 1


def test_a_turn_excludes_other_writers_and_needs_a_vault_that_is_open_for_writing(vaults: Any) -> None:
    vault = vaults.create()

    @in_turn
    def other_writer(_: Vault) -> str:
        with pytest.raises(Busy):
            vaults.open(timeout=0)
        return "done"

    assert other_writer(vault) == "done"
    with pytest.raises(Refused, match="reading only"):
        other_writer(vaults.open(write=False))


def test_every_public_method_is_serialised_but_close(vaults: Any) -> None:
    vault = vaults.create()

    @serialised_methods
    class Work:
        core = vault.core

        def public(self) -> bool:
            return is_locked()

        def _private(self) -> bool:
            return is_locked()

        def close(self) -> bool:
            return is_locked()

    def is_locked() -> bool:
        """Return True if another thread could not take the lock now."""
        answers: list[bool] = []

        def attempt() -> None:
            answers.append(vault.core.lock.acquire_within(0))
            if answers[0]:
                vault.core.lock.release()

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        return not answers[0]

    work = Work()
    assert (work.public(), work._private(), work.close()) == (True, False, False)
