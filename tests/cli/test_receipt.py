"""`fedmem receipt` on files alone: show, verify with chain and opening, export."""

import base64
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedmem.cli.main import main
from fedmem.erasure import Scope, receipt
from fedmem.storage.canonical import digest

SEED, OPENING = bytes(range(32)), bytes([5]) * 32
Call = Callable[..., tuple[Result, dict[str, Any]]]


def signed(number: int, before: bytes | None, **more: Any) -> bytes:
    """A receipt with every field."""
    said = {
        "wording": "crypto-erased", "erasure": f"{number:032x}", "vault": "11" * 16, "plan": "22" * 32,
        "scope": {"commitment": receipt.commit(Scope.block("health"), OPENING), "scheme": receipt.SCHEME},
        "generation": number, "erased": [{"id": "33" * 16, "kind": "record"}],
        "stores": [{"name": "key-table", "method": "row left out", "items": 1, "clean": True}],
        "executed": "2025-01-02T03:04:05+00:00", "not_covered": ["older copies"],
        "residual_epsilon": {"epsilon": None, "reason": "shared before"},
        "previous": None if before is None else digest(before), **more,
    }  # fmt: skip
    return receipt.sign(
        {"_type": receipt.STATEMENT_TYPE, "subject": [], "predicateType": receipt.PREDICATE_TYPE, "predicate": said},
        SEED,
    )


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three receipts of one chain, r1 to r3, their key and the opening."""
    monkeypatch.chdir(tmp_path)
    first = signed(1, None)
    second = signed(2, first)
    for number, data in enumerate((first, second, signed(3, second)), 1):
        Path(f"r{number}").write_bytes(data)
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    Path("device.pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    Path("opening").write_text(OPENING.hex() + "\n")
    return tmp_path


def test_show_needs_no_key_and_says_that_nothing_was_checked(fedmem: Call, work: Path) -> None:
    envelope = json.loads(Path("r1").read_bytes())
    envelope["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()
    Path("forged").write_text(json.dumps(envelope))
    result, told = fedmem("receipt", "show", "forged")
    assert (result.exit_code, told["schema"], told["data"]["verified"]) == (0, "fedmem.receipt.show/1", False)
    assert told["data"]["statement"]["predicate"]["erasure"] == f"{1:032x}"
    assert "Nothing was checked" in result.stderr
    human = CliRunner().invoke(main, ["receipt", "show", "forged"])
    assert human.exit_code == 0
    assert "NOT CHECKED" in human.stdout
    assert "valid" not in human.stdout


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b"[" * 100_000])
def test_show_of_what_is_no_receipt(fedmem: Call, work: Path, content: bytes) -> None:
    Path("r").write_bytes(content)
    assert fedmem("receipt", "show", "r")[0].exit_code == 6


def test_show_of_fields_of_another_form(fedmem: Call, work: Path) -> None:
    Path("r").write_bytes(signed(1, None, erased=[7]))
    assert fedmem("receipt", "show", "r")[0].exit_code == 6


def test_control_characters_do_not_reach_the_terminal(work: Path) -> None:
    Path("r").write_bytes(signed(1, None, executed="\x1b[31mred", later={"\x1b": 1}))
    human = CliRunner().invoke(main, ["receipt", "show", "r"])
    assert human.exit_code == 0
    assert "\x1b" not in human.stdout


def test_verify_one(fedmem: Call, work: Path) -> None:
    result, told = fedmem("receipt", "verify", "r2", "--key", "device.pub")
    assert (result.exit_code, told["data"]["verified"]) == (0, True)
    (link,) = told["data"]["receipts"]
    assert link["digest"] == digest(Path("r2").read_bytes())
    assert link["previous"] == digest(Path("r1").read_bytes())
    assert "about_scope" not in told["data"]


def test_verify_a_chain(fedmem: Call, work: Path) -> None:
    result, told = fedmem("receipt", "verify", "r1", "r2", "r3", "--key", "device.pub")
    assert (result.exit_code, told["data"]["verified"]) == (0, True)
    assert [link["erasure"] for link in told["data"]["receipts"]] == [f"{number:032x}" for number in (1, 2, 3)]
    assert told["data"]["statement"]["predicate"]["generation"] == 3
    human = CliRunner().invoke(main, ["receipt", "verify", "r1", "r2", "r3", "--key", "device.pub"])
    assert "chain of 3 receipts is whole" in human.stdout
    assert digest(Path("r3").read_bytes()) in human.stdout


@pytest.mark.parametrize(
    ("files", "link"),
    [
        (("r1", "r3"), "between receipt 1 and receipt 2"),
        (("r1", "r2", "r2"), "between receipt 2 and receipt 3"),
        (("r2", "r1"), "before receipt 1"),
    ],
)
def test_a_chain_that_breaks_ends_with_6_and_says_where(fedmem: Call, work: Path, files: Any, link: str) -> None:
    result, told = fedmem("receipt", "verify", *files, "--key", "device.pub")
    assert (result.exit_code, told["data"]["error"]) == (6, "VerificationFailed")
    assert link in told["data"]["message"]


def test_the_opening_from_a_file_a_descriptor_and_a_prompt(
    fedmem: Call, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("receipt", "verify", "r1", "--key", "device.pub", "--scope", "block:health")
    result, told = fedmem(*words, "--opening", "opening")
    assert (result.exit_code, told["data"]["about_scope"]) == (0, True)
    with Path("opening").open("rb") as stream:
        result, told = fedmem(*words, "--opening-fd", str(stream.fileno()))
    assert (result.exit_code, told["data"]["about_scope"]) == (0, True)
    assert fedmem(*words)[0].exit_code == 2  # no terminal to ask on
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)
    human = CliRunner().invoke(main, list(words), input=OPENING.hex() + "\n")
    assert human.exit_code == 0, human.stderr
    assert "about the scope given" in human.stdout
    assert OPENING.hex() not in human.output


def test_another_scope_or_opening_keeps_the_envelope_and_ends_with_6(fedmem: Call, work: Path) -> None:
    Path("other").write_text(bytes(32).hex())
    for scope, opening in (("block:finance", "opening"), ("topic:health", "opening"), ("block:health", "other")):
        words = ("receipt", "verify", "r1", "--key", "device.pub", "--scope", scope, "--opening", opening)
        result, told = fedmem(*words)
        assert (result.exit_code, told["data"]["verified"], told["data"]["about_scope"]) == (6, True, False)
        assert "does not open" in result.stderr


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33, "not hex at all"])
def test_what_is_no_opening_is_a_usage_error_that_does_not_repeat_it(fedmem: Call, work: Path, text: str) -> None:
    Path("bad").write_text(text)
    words = ("receipt", "verify", "r1", "--key", "device.pub", "--scope", "block:health", "--opening", "bad")
    result, told = fedmem(*words)
    assert (result.exit_code, told["data"]["error"]) == (2, "UsageError")
    assert not text or text not in result.output


@pytest.mark.parametrize(
    "words",
    [
        ("r1", "--opening", "opening"),  # an opening without a scope
        ("r1", "r2", "--scope", "block:health", "--opening", "opening"),  # one opening, two receipts
        ("r1", "--scope", "block:health", "--opening-fd", "999"),
        ("none",),
    ],
)
def test_wrong_use_of_verify(fedmem: Call, work: Path, words: tuple[str, ...]) -> None:
    assert fedmem("receipt", "verify", *words, "--key", "device.pub")[0].exit_code == 2


def test_export_writes_the_page_once(fedmem: Call, work: Path) -> None:
    words = ("receipt", "export", "r2", "--key", "device.pub", "--html", "evidence.html")
    result, told = fedmem(*words)
    assert (result.exit_code, told["schema"]) == (0, "fedmem.receipt.export/1")
    text = Path("evidence.html").read_text("utf-8")
    assert told["data"]["bytes"] == len(text.encode())
    assert told["data"]["key_sha256"] in text
    assert digest(Path("r1").read_bytes()) in text
    result, _ = fedmem(*words[:2], "r1", *words[3:])
    assert result.exit_code == 2
    assert Path("evidence.html").read_text("utf-8") == text


def test_a_receipt_that_does_not_verify_is_not_exported(fedmem: Call, work: Path) -> None:
    Path("r2").write_bytes(Path("r2").read_bytes()[:-1])
    assert fedmem("receipt", "export", "r2", "--key", "device.pub", "--html", "out.html")[0].exit_code == 6
    assert not Path("out.html").exists()


def test_no_folder_and_a_full_disk(fedmem: Call, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("receipt", "export", "r1", "--key", "device.pub", "--html")
    assert fedmem(*words, "none/out.html")[0].exit_code == 2
    real = Path.open

    def full(path: Path, mode: str = "r", *more: Any, **rest: Any) -> Any:
        stream = real(path, mode, *more, **rest)
        if mode == "x":
            stream.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return stream

    monkeypatch.setattr(Path, "open", full)
    assert fedmem(*words, "out.html")[0].exit_code == 11
    assert not Path("out.html").exists()
