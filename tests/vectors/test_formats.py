"""Formats that must stay readable: checked-in files, each with the class that reading it must give."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedmem import errors
from fedmem.erasure import receipt
from fedmem.storage.files import Files
from fedmem.vault.crypto import container
from fedmem.vault.crypto import key_table as keytable
from fedmem.vault.crypto.keystore import KeyfileKeys

HERE = Path(__file__).parent
SEALED = {"ok", "ContainerCorrupt", "TruncatedContainer", "WrongKey", "VersionMismatch"}
CLASSES = {
    "container": SEALED,
    "keytable": SEALED | {"KeystoreError", "VerificationFailed"},
    "receipt": {"ok", "VerificationFailed"},
}


def vectors(folder: str) -> list[Any]:
    """The scenarios of one format."""
    files = sorted((HERE / folder).glob("*.json"))
    return [pytest.param(json.loads(path.read_text("utf-8")), id=path.stem) for path in files]


def expected(vector: dict[str, Any]) -> type[Exception]:
    """The class that reading must raise."""
    found: type[Exception] = getattr(container, vector["expect"], None) or getattr(errors, vector["expect"])
    return found


def raw(text: str) -> bytes:
    """Base64 of a vector."""
    return base64.b64decode(text, validate=True)


@pytest.mark.parametrize("vector", vectors("container"))
def test_container(vector: dict[str, Any]) -> None:
    key, data = raw(vector["key"]), raw(vector["container"])
    if vector["expect"] == "ok":
        assert container.unseal(key, data, identity=vector["identity"])[1] == raw(vector["payload"])
        return
    with pytest.raises(expected(vector)) as caught:
        container.unseal(key, data, identity=vector["identity"])
    assert type(caught.value) is expected(vector)


@pytest.mark.parametrize("vector", [one for one in vectors("keytable") if "payload" in one.values[0]])
def test_payload_of_the_key_table(vector: dict[str, Any]) -> None:
    payload = raw(vector["payload"])
    if vector["expect"] == "ok":
        facts, keys = keytable.decode(payload)
        assert {item: key.hex() for item, key in keys.items()} == vector["rows"]
        assert keytable.encode(facts, keys) == payload
        return
    with pytest.raises(expected(vector)) as caught:
        keytable.decode(payload)
    assert type(caught.value) is expected(vector)


@pytest.mark.parametrize("vector", [one for one in vectors("keytable") if "table" in one.values[0]])
def test_key_table(vector: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    slots = KeyfileKeys(Files(), tmp_path / "slots")
    for name, key in vector["keys"].items():
        slots.put(name, raw(key))
    file = tmp_path / "table.fmk"
    file.write_bytes(raw(vector["table"]))
    if vector["expect"] == "ok":
        found = keytable.KeyTable.open(Files(), file, slots, vector["vault"])
        assert {item: key.hex() for item, key in found.keys.items()} == vector["rows"]
        assert (found.epoch, found.generation, found.serial) == (2, 1, 3)
        return
    with pytest.raises(expected(vector)) as caught:
        keytable.KeyTable.open(Files(), file, slots, vector["vault"])
    assert type(caught.value) is expected(vector)
    assert file.read_bytes() == raw(vector["table"])


@pytest.mark.parametrize("vector", [one for one in vectors("receipt") if "receipt" in one.values[0]])
def test_receipt_and_a_second_verifier(vector: dict[str, Any], second: ModuleType) -> None:
    data, key = raw(vector["receipt"]), raw(vector["key"])
    if vector["expect"] == "ok":
        assert receipt.verify(data, key) == second.check(data, key) == receipt.read(data) == vector["statement"]
        assert receipt.verify_chain([data], key) == [vector["statement"]]
        return
    with pytest.raises(expected(vector)) as caught:
        receipt.verify(data, key)
    assert type(caught.value) is expected(vector)
    with pytest.raises(second.NotVerified):
        second.check(data, key)


@pytest.mark.parametrize("vector", [one for one in vectors("receipt") if "receipts" in one.values[0]])
def test_chain_and_a_second_verifier(vector: dict[str, Any], second: ModuleType) -> None:
    files, key = [raw(one) for one in vector["receipts"]], raw(vector["key"])
    if vector["expect"] == "ok":
        said = receipt.verify_chain(files, key)
        assert said == second.check_chain(files, key)
        assert [one["predicate"]["generation"] for one in said] == [1, 2, 3][: len(files)]
        return
    with pytest.raises(expected(vector)):
        receipt.verify_chain(files, key)
    with pytest.raises(second.NotVerified):
        second.check_chain(files, key)


@pytest.mark.parametrize("folder", CLASSES)
def test_each_format_has_good_and_bad_vectors_that_say_why(folder: str) -> None:
    found = [param.values[0] for param in vectors(folder)]
    assert {vector["expect"] == "ok" for vector in found} == {True, False}
    assert all(vector["why"] for vector in found)
    assert {vector["expect"] for vector in found} == CLASSES[folder]


def test_they_come_out_the_same_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(HERE / "make.py"), str(tmp_path)], check=True, timeout=60)
    made = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.glob("*/*.json")}
    kept = {path.relative_to(HERE).as_posix(): path.read_bytes() for path in HERE.glob("*/*.json")}
    assert made.keys() == kept.keys()
    assert [name for name in kept if made[name] != kept[name]] == []
