"""Where fedmem keeps things on this machine.

Invariants
- Key slots never lie under a run, a vault root or a backup.
- Nothing is created by asking where it would be.
"""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Base folder: `FEDMEM_HOME`, else the platform's data folder for this user."""
    return Path(os.environ.get("FEDMEM_HOME") or platformdirs.user_data_dir("fedmem", appauthor=False))


def runs_dir() -> Path:
    """Simulation runs: `FEDMEM_RUNS`, else `home()/runs`."""
    return Path(os.environ.get("FEDMEM_RUNS") or home() / "runs")


def slots_dir() -> Path:
    """Key slot files, one folder per vault id; outside every run and vault root (docs/design.md, §8)."""
    return home() / "slots"


def vaults_dir() -> Path:
    """Vaults that the SDK opens by subject."""
    return home() / "vaults"
