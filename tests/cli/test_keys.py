"""keys: status, rotation, passphrases and recovery kits at the command line, and how each refusal ends."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem.cli.main import main
from fedmem.paths import slots_dir
from fedmem.sdk.places import vault_root
from fedmem.vault.vault import BlockInfo, Vault

Call = Callable[..., tuple[Any, dict[str, Any]]]
ANA = ("--subject", "ana")


@pytest.fixture
def secret_file(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a secret to a file that only its owner reads."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(text + "\n")
        return str(tmp_path / name)

    return write


@pytest.fixture
def pipe() -> Iterator[Callable[[], str]]:
    """A pipe for a code: its writing end is `pipe.fd`, and calling it reads what was written."""
    reading, writing = os.pipe()

    def read() -> str:
        return os.read(reading, 4096).decode().strip()

    read.fd = str(writing)  # type: ignore[attr-defined]
    yield read
    os.close(reading)
    os.close(writing)


@pytest.fixture
def kit(fedmem: Call, block: BlockInfo, tmp_path: Path, pipe: Any, secret_file: Any) -> tuple[str, ...]:
    """Options that name ana's kit and its code."""
    result, envelope = fedmem("keys", "recovery", "create", *ANA, "--kit", f"{tmp_path}/kit", "--code-fd", pipe.fd)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.keys.recovery.create/1")
    code = pipe()
    assert code not in result.output
    return ("--kit", f"{tmp_path}/kit", "--code-file", secret_file("code", code))


def test_status(fedmem: Call, kit: tuple[str, ...], tmp_path: Path) -> None:
    fedmem("backup", "create", *ANA, "--to", f"{tmp_path}/backup")
    result, envelope = fedmem("keys", "status", *ANA)
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.keys.status/1")
    data = envelope["data"]
    assert (data["backend"], data["generation"], data["noted"]) == ("keyfile", 0, data["serial"])
    assert [(copy["kind"], copy["state"]) for copy in data["copies"]] == [("kit", "valid"), ("backup", "valid")]
    assert CliRunner().invoke(main, ["keys", "status", *ANA]).exit_code == 0
    (tmp_path / "kit").rename(tmp_path / "elsewhere")
    (tmp_path / "backup").rename(tmp_path / "stick")
    fedmem("block", "delete", "health", *ANA, "--yes")
    copies = fedmem("keys", "status", *ANA)[1]["data"]["copies"]
    assert [(copy["state"], copy["reachable"]) for copy in copies] == [("retired", False)] * 2


def test_kit_opens_and_brings_lost_keys_back(fedmem: Call, kit: tuple[str, ...]) -> None:
    result, envelope = fedmem("keys", "recovery", "test", *ANA, *kit)
    assert (result.exit_code, envelope["data"]["opens"]) == (0, True)
    shutil.rmtree(slots_dir())
    assert fedmem("block", "list", *ANA)[0].exit_code == 8
    result, _ = fedmem("keys", "recovery", "restore", *ANA, *kit, "--keystore", "keyfile")
    assert result.exit_code == 0
    assert len(fedmem("block", "list", *ANA)[1]["data"]["blocks"]) == 1


def test_a_retired_kit_ends_with_6_and_a_wrong_code_with_8(
    fedmem: Call, kit: tuple[str, ...], secret_file: Any
) -> None:
    other = secret_file("other", "AAAA-BBBB")
    assert fedmem("keys", "recovery", "test", *ANA, *kit[:2], "--code-file", other)[0].exit_code == 8
    file = Path(kit[1])
    saved = file.read_bytes()
    fedmem("block", "delete", "health", *ANA, "--yes")
    assert not file.exists()
    assert fedmem("keys", "recovery", "test", *ANA, *kit)[0].exit_code == 3
    file.write_bytes(saved)
    result, envelope = fedmem("keys", "recovery", "test", *ANA, *kit)
    assert (result.exit_code, envelope["data"]["error"]) == (6, "VerificationFailed")
    assert fedmem("keys", "recovery", "restore", *ANA, *kit, "--keystore", "keyfile")[0].exit_code == 6
    file.write_text(json.dumps({"id": 1}))
    assert fedmem("keys", "recovery", "test", *ANA, *kit)[0].exit_code == 6


def test_no_code_is_made_that_nobody_could_see(fedmem: Call, block: BlockInfo, tmp_path: Path) -> None:
    assert fedmem("keys", "recovery", "create", *ANA, "--kit", f"{tmp_path}/kit")[0].exit_code == 4
    assert fedmem("keys", "recovery", "create", *ANA, "--kit", f"{tmp_path}/kit", "--code-fd", "987")[0].exit_code == 4
    assert not (tmp_path / "kit").exists()
    assert fedmem("keys", "status", *ANA)[1]["data"]["copies"] == []


def test_a_code_that_cannot_be_written_leaves_no_kit(fedmem: Call, block: BlockInfo, tmp_path: Path, pipe: Any) -> None:
    create = ("keys", "recovery", "create", *ANA, "--kit", f"{tmp_path}/kit", "--code-fd")
    reading, cut = os.pipe()
    os.close(reading)
    result, envelope = fedmem(*create, str(cut))
    os.close(cut)
    assert (result.exit_code, envelope["data"]["error"]) == (11, "StorageError")
    assert not (tmp_path / "kit").exists()
    assert fedmem("keys", "status", *ANA)[1]["data"]["copies"] == []
    assert fedmem(*create, pipe.fd)[0].exit_code == 0
    assert pipe()


def test_a_code_is_written_in_full_before_there_is_a_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmem.cli import options

    written: list[bytes] = []
    with (tmp_path / "code").open("wb") as file:
        show = options.code_writer(file.fileno())
        monkeypatch.setattr(options.os, "write", lambda _, data: written.append(data[:5]) or len(data[:5]))
        show("AAAA-BBBB-CCCC")
    assert b"".join(written) == b"AAAA-BBBB-CCCC\n"


def test_kits_are_never_written_over_or_beside_the_vault(fedmem: Call, kit: tuple[str, ...], pipe: Any) -> None:
    for place in (kit[1], f"{vault_root('ana')}/kit", f"{slots_dir()}/kit"):
        words = ("keys", "recovery", "create", *ANA, "--kit", place, "--code-fd", pipe.fd)
        assert fedmem(*words)[0].exit_code == 4


def test_rotate(fedmem: Call, kit: tuple[str, ...]) -> None:
    before = fedmem("keys", "status", *ANA)[1]["data"]
    result, envelope = fedmem("keys", "rotate", *ANA, "--dry-run")
    assert (result.exit_code, envelope["data"]["done"], len(envelope["data"]["retired"])) == (0, False, 1)
    assert fedmem("keys", "rotate", *ANA)[0].exit_code == 4
    assert fedmem("keys", "status", *ANA)[1]["data"] == before
    assert fedmem("keys", "rotate", *ANA, "--yes")[0].exit_code == 0
    after = fedmem("keys", "status", *ANA)[1]["data"]
    assert (after["epoch"], after["generation"]) == (before["epoch"] + 1, before["generation"])
    assert after["copies"] == []
    assert len(fedmem("block", "list", *ANA)[1]["data"]["blocks"]) == 1


def test_change_passphrase(fedmem: Call, secret_file: Any) -> None:
    Vault.create(vault_root("ana"), subject="ana", keystore="passphrase", ask=lambda: "tulip").close()
    old, new, wrong = (secret_file(word, word) for word in ("tulip", "rose", "weed"))
    words = ("keys", "change-passphrase", *ANA)
    assert fedmem(*words, "--passphrase-file", wrong, "--new-passphrase-file", new)[0].exit_code == 8
    assert fedmem(*words, "--passphrase-file", old)[0].exit_code == 8  # no new one, and no terminal
    assert fedmem("block", "list", *ANA, "--passphrase-file", old)[0].exit_code == 0
    result, _ = fedmem(*words, "--passphrase-file", old, "--new-passphrase-file", new)
    assert result.exit_code == 0
    assert "rose" not in result.output
    assert fedmem("block", "list", *ANA, "--passphrase-file", new)[0].exit_code == 0
    assert fedmem("block", "list", *ANA, "--passphrase-file", old)[0].exit_code == 8


def test_a_vault_without_a_passphrase_has_none_to_change(fedmem: Call, block: BlockInfo, secret_file: Any) -> None:
    new = secret_file("rose", "rose")
    assert fedmem("keys", "change-passphrase", *ANA, "--new-passphrase-file", new)[0].exit_code == 4


def test_an_older_version_put_back(fedmem: Call, block: BlockInfo) -> None:
    root = vault_root("ana")
    shutil.copytree(root, root.with_name("old"))
    with Vault.open(root, subject="ana") as vault:
        vault.begin_run("finance", "r" * 64, {}, "01", [], {})
    shutil.rmtree(root)
    root.with_name("old").rename(root)
    result, envelope = fedmem("block", "list", *ANA)
    assert (result.exit_code, envelope["data"]["error"]) == (6, "RolledBack")


def test_an_older_database_put_back(fedmem: Call, block: BlockInfo) -> None:
    root = vault_root("ana")
    shutil.copy(root / "vault.db", root.with_name("old.db"))
    with Vault.open(root, subject="ana") as vault:
        vault.begin_run("finance", "r" * 64, {}, "01", [], {})
    for name in ("vault.db", "vault.db-wal", "vault.db-shm"):
        (root / name).unlink(missing_ok=True)
    root.with_name("old.db").rename(root / "vault.db")
    for words in (("block", "list"), ("keys", "rotate", "--yes")):
        result, envelope = fedmem(*words, *ANA)
        assert (result.exit_code, envelope["data"]["error"]) == (6, "RolledBack")


def test_secrets_are_no_arguments(block: BlockInfo) -> None:
    for words in (["--code", "x"], ["--passphrase", "x"], ["--new-passphrase", "x"]):
        assert CliRunner().invoke(main, ["keys", "status", *ANA, *words]).exit_code == 2
