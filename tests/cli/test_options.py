"""Passphrases and confirmation: where they may come from, and what is refused."""

import os
from pathlib import Path

import pytest

from fedmem.cli import options
from fedmem.cli.options import confirm, find_vault, secret_source
from fedmem.errors import KeystoreError, NothingMatched, Refused
from fedmem.sdk.places import vault_root


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes("correct horse é\r\nsecond line".encode())
    file.chmod(0o600)
    return file


def test_file_and_descriptor_give_the_first_line(secret: Path) -> None:
    assert secret_source(secret, None)() == "correct horse é"
    descriptor = os.open(secret, os.O_RDONLY)
    try:
        assert secret_source(None, descriptor)() == "correct horse é"
    finally:
        os.close(descriptor)


def test_a_file_that_others_can_read_is_refused(secret: Path) -> None:
    secret.chmod(0o640)
    with pytest.raises(KeystoreError):
        secret_source(secret, None)()


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_no_passphrase_in_it(secret: Path, content: bytes) -> None:
    secret.write_bytes(content)
    with pytest.raises(KeystoreError):
        secret_source(secret, None)()


def test_missing_file_and_closed_descriptor(tmp_path: Path) -> None:
    with pytest.raises(KeystoreError):
        secret_source(tmp_path / "none", None)()
    with pytest.raises(KeystoreError):
        secret_source(None, 987)()


def test_off_a_terminal_nothing_is_asked() -> None:
    with pytest.raises(KeystoreError):
        secret_source(None, None)()
    with pytest.raises(Refused):
        confirm("Delete?", yes=False)
    confirm("Delete?", yes=True)


def test_on_a_terminal_a_no_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(options.click, "confirm", lambda *_, **__: False)
    with pytest.raises(Refused):
        confirm("Delete?", yes=False)


def test_vault_by_subject_by_folder_and_by_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path))
    monkeypatch.delenv("FEDMEM_RUNS", raising=False)
    with pytest.raises(NothingMatched):
        find_vault("ana", None)
    vault_root("ana").mkdir(parents=True)
    device = tmp_path / "runs" / "quickstart-0001" / "vaults" / "device-0"
    device.mkdir(parents=True)
    assert find_vault("ana", None) == vault_root("ana")
    assert find_vault("ana", str(device)) == device
    assert find_vault("ana", "quickstart-0001/device-0") == device
    with pytest.raises(NothingMatched):
        find_vault("ana", "quickstart-0001/device-9")
