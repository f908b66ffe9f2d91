"""Formats that must stay readable: checked-in files, each with the class that reading it must give."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fedmem import errors
from fedmem.erasure import receipt
from fedmem.vault import container, keytable

HERE = Path(__file__).parent


def vectors(folder: str) -> list[Any]:
    """The scenarios of one format."""
    files = sorted((HERE / folder).glob("*.json"))
    return [pytest.param(json.loads(path.read_text("utf-8")), id=path.stem) for path in files]


def expected(vector: dict[str, Any]) -> type[Exception]:
    """The class that reading must raise."""
    found: type[Exception] = getattr(container, vector["expect"], None) or getattr(errors, vector["expect"])
    return found


@pytest.mark.parametrize("vector", vectors("container"))
def test_container(vector: dict[str, Any]) -> None:
    key, data = base64.b64decode(vector["key"]), base64.b64decode(vector["container"])
    if vector["expect"] == "ok":
        assert container.unseal(key, data, identity=vector["identity"])[1] == base64.b64decode(vector["payload"])
        return
    with pytest.raises(expected(vector)) as caught:
        container.unseal(key, data, identity=vector["identity"])
    assert type(caught.value) is expected(vector)


@pytest.mark.parametrize("vector", vectors("keytable"))
def test_keytable(vector: dict[str, Any]) -> None:
    payload = base64.b64decode(vector["payload"])
    if vector["expect"] == "ok":
        facts, keys = keytable.decode(payload)
        assert {item: key.hex() for item, key in keys.items()} == vector["rows"]
        assert keytable.encode(facts, keys) == payload
        return
    with pytest.raises(expected(vector)):
        keytable.decode(payload)


@pytest.mark.parametrize("vector", vectors("receipt"))
def test_receipt(vector: dict[str, Any]) -> None:
    data, key = base64.b64decode(vector["receipt"]), base64.b64decode(vector["key"])
    if vector["expect"] == "ok":
        assert receipt.verify(data, key) == vector["statement"]
        return
    with pytest.raises(expected(vector)):
        receipt.verify(data, key)


@pytest.mark.parametrize("folder", ["container", "keytable", "receipt"])
def test_each_format_has_good_and_bad_vectors(folder: str) -> None:
    kinds = {param.values[0]["expect"] == "ok" for param in vectors(folder)}
    assert kinds == {True, False}
