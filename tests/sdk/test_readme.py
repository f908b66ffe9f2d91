"""The README's app runs as it stands, but for the keystore, which no test machine has."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_app_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert 'Client.open("ana")' in code
    script = tmp_path / "app.py"
    script.write_text(code.replace('Client.open("ana")', 'Client.open("ana", keystore="keyfile")'), encoding="utf-8")
    runpy.run_path(str(script))
    lines = capsys.readouterr().out.splitlines()
    assert "128 over 82" in lines[0]
    assert lines[1] == "[]"
    assert Path(lines[2]).exists()
