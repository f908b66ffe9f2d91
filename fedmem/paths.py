"""Folders in which fedmem stores its files on this machine.

Invariants
- Key slots are never below a run, a vault or a backup.
- No function here creates a folder.
"""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Return the base folder: `FEDMEM_HOME`, or the platform's data folder of this user."""
    return Path(os.environ.get("FEDMEM_HOME") or platformdirs.user_data_dir("fedmem", appauthor=False))


def runs_dir() -> Path:
    """Return the folder of simulation runs: `FEDMEM_RUNS`, or `home()/runs`."""
    return Path(os.environ.get("FEDMEM_RUNS") or home() / "runs")


def slots_dir() -> Path:
    """Return the folder of key slots. It holds one folder for each vault id (docs/design.md, §8)."""
    return home() / "slots"


def vaults_dir() -> Path:
    """Return the folder of the vaults that the SDK opens by subject."""
    return home() / "vaults"
