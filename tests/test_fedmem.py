"""The package itself: what it offers at once, and what it imports only when it is used."""

import subprocess
import sys

import pytest

import fedmem


def test_it_offers_the_client_and_its_version() -> None:
    from fedmem.sdk.client import Client

    assert fedmem.Client is Client
    assert set(fedmem.__all__) == {"Client", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'client'"):
        _ = fedmem.client


def test_importing_it_imports_nothing_large() -> None:
    code = "import sys, fedmem; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'flwr', 'sqlalchemy'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
