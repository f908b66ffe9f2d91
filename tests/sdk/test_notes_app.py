"""The example app runs: add, find, ask, forget, each in a process of its own, one after another and many at once."""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedmem.sdk.client import Client
from fedmem.training.release import Release

APP = Path(__file__).resolve().parents[2] / "client" / "notes_app.py"
NOTE = "My doctor prescribed new tablets for my blood pressure after the visit on Monday."


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NOTES_KEYSTORE": "keyfile", "PYTHONPATH": str(APP.parents[1]), **more}
    return subprocess.run([sys.executable, str(APP), *words], env=env, capture_output=True, text=True, check=False)


def notes(*words: str, **more: str) -> str:
    done = run(*words, **more)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.strip()


def test_it_remembers_answers_and_forgets(release: Release) -> None:
    assert notes("add", NOTE) == "private"
    assert notes("find", "which pills") == NOTE
    assert notes("ask", "The tablets", NOTES_RELEASE=str(release.root))
    assert notes("forget", "health").endswith(".dsse.json")
    assert notes("find", "which pills") == ""


@pytest.mark.parametrize("words", [("add", " "), ("forget", "nothing"), ("dance",), ()])
def test_what_fails_is_a_sentence(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().endswith(".")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("each", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_many_processes_at_once_lose_nothing(each: int) -> None:
    """Eight threads start processes, one of them with notes on health, which it forgets again and again."""
    added: set[str] = set()

    def work(name: int) -> None:
        draws = random.Random(name)
        for number in range(each):
            if number and draws.random() < 0.2:
                notes("find", "Where does the river run?")
            else:
                # The policy places this under no topic, whatever the numbers: health would be forgotten.
                notes("add", text := f"The river runs to the sea, {number} {name}.")
                added.add(text)

    def forget() -> None:
        for number in range(0, each, 2):
            notes("add", f"{NOTE} {number}")
            notes("forget", "health")

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(forget), *(pool.submit(work, name) for name in range(7))]:
            future.result()
    with Client.open("me", keystore="keyfile", timeout=0) as client:
        assert {hit.text for hit in client.search("x", k=10**6)} == added
        assert [one.state for one in client.erase.status()] == ["completed"] * len(range(0, each, 2))
        client.privacy.verify()


def test_it_is_small() -> None:
    code = [line for line in APP.read_text("utf-8").splitlines() if line.strip()]
    assert len(code) <= 20
