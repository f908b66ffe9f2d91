"""client/verify_receipt.py stands alone: few imports, few lines, its own command line and exit codes."""

import ast
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def files(tmp_path: Path, scenario: str) -> list[str]:
    """The files of a scenario on disk, with `--key`."""
    vector = json.loads((HERE / "receipt" / f"{scenario}.json").read_text("utf-8"))
    given = []
    for number, data in enumerate(vector.get("receipts") or [vector["receipt"]]):
        given.append(str(tmp_path / f"{number}.dsse.json"))
        Path(given[-1]).write_bytes(base64.b64decode(data))
    (tmp_path / "device.pub").write_bytes(base64.b64decode(vector["key"]))
    return [*given, "--key", str(tmp_path / "device.pub")]


def test_it_is_small_and_needs_nothing_of_ours(second: ModuleType) -> None:
    text = Path(str(second.__file__)).read_text("utf-8")
    assert len(text.splitlines()) < 200
    named = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }  # fmt: skip
    assert named <= sys.stdlib_module_names | {"cryptography"}


@pytest.mark.parametrize(
    ("scenario", "code"),
    [("whole", 0), ("chain", 0), ("flipped-payload", 6), ("chain-without-second", 6), ("key-not-pem", 6)],
)
def test_exit_codes_of_its_command_line(second: ModuleType, tmp_path: Path, scenario: str, code: int) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-I", "-W", "error", str(second.__file__), *files(tmp_path, scenario)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)
    assert done.returncode == code
    assert done.stdout.count("verified") == (0 if code else len(files(tmp_path, scenario)) - 2)
    assert ("NOT VERIFIED" in done.stderr) == bool(code)


def test_it_names_the_link_that_breaks(second: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert second.main(files(tmp_path, "chain-without-second")) == 6
    assert "receipt 2 does not follow on receipt 1" in capsys.readouterr().err
    assert second.main(files(tmp_path, "chain-without-first")) == 6
    assert "receipt 1 is not the first" in capsys.readouterr().err


def test_wrong_usage_ends_with_2(second: ModuleType, tmp_path: Path) -> None:
    for words in ([], ["r.json"], [str(tmp_path / "none"), "--key", str(tmp_path / "none")]):
        with pytest.raises(SystemExit) as ended:
            second.main(words)
        assert ended.value.code == 2


def test_more_than_a_receipt_may_hold_and_nesting_beyond_reason(
    second: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(second.NotVerified, match="JSON"):
        second.check(b"[" * 100_000, b"")
    monkeypatch.setattr(second, "LARGEST", 10)
    with pytest.raises(second.NotVerified, match="larger"):
        second.check(b"x" * 11, b"")
