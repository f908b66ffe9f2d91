"""The example app runs: add, find, ask, forget, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from fedmem.training.release import Release

APP = Path(__file__).resolve().parents[2] / "client" / "notes_app.py"
NOTE = "My doctor prescribed new tablets for my blood pressure after the visit on Monday."


def notes(*words: str, **more: str) -> str:
    env = {**os.environ, "NOTES_KEYSTORE": "keyfile", "PYTHONPATH": str(APP.parents[1]), **more}
    done = subprocess.run([sys.executable, str(APP), *words], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_it_remembers_answers_and_forgets(release: Release) -> None:
    assert notes("add", NOTE) == "private"
    assert notes("find", "which pills") == NOTE
    assert notes("ask", "The tablets", NOTES_RELEASE=str(release.root))
    assert notes("forget", "health").endswith(".dsse.json")
    assert notes("find", "which pills") == ""


def test_it_is_small() -> None:
    code = [line for line in APP.read_text("utf-8").splitlines() if line.strip()]
    assert len(code) <= 20
