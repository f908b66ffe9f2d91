"""The README's app runs as it stands, on a small release; what it learned is then erased by the commands below it."""

import json
import re
import runpy
import sys
from pathlib import Path

from click.testing import CliRunner

from fedmem.cli.main import main
from fedmem.training.release import Release

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def fedmem(*words: str) -> dict[str, object]:
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["data"]


def test_the_readme_app_runs(release: Release, home: Path, monkeypatch, capsys) -> None:
    (code,) = re.findall(r"cat > app.py <<'END'\n(.*?)END\n", README, re.DOTALL)
    (home.parent / "app.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["app.py", str(release.root)])
    runpy.run_path(str(home.parent / "app.py"))
    lines = capsys.readouterr().out.splitlines()
    assert "128 over 82" in lines[0]
    assert lines[1].startswith("BlockInfo(")
    erased = fedmem("block", "delete", "health", "--subject", "ana", "--yes")
    receipt = Path(str(erased["receipt"]))
    assert fedmem("receipt", "verify", str(receipt), "--key", str(receipt.parents[1] / "device.pub"))
