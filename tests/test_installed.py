"""Optional packages: a missing one is an error that names the command."""

import pytest

from fedmem import installed
from fedmem.errors import UsageError


def test_a_missing_package_names_the_command() -> None:
    for look in (installed.package, lambda name, command: installed.package_file(name, "model.onnx", command)):
        with pytest.raises(UsageError, match="pip install no-such-thing"):
            look("no_such_thing", "pip install no-such-thing")


def test_a_package_without_the_file_is_missing_it() -> None:
    assert installed.package_file("fedmem", "errors.py", "").is_file()
    with pytest.raises(UsageError, match="fedmem"):
        installed.package_file("fedmem", "model.onnx", "pip install fedmem")
