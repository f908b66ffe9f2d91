"""docs/erasure.md: its commands run as they stand, in an empty folder, and end as it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "erasure.md"


def script(text: str) -> str:
    """The guide's blocks as one script that stops at the first code that is not the one it names."""
    lines = ["set -eo pipefail"]
    for line in "".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).splitlines():
        command, mark, code = line.rpartition("# exit ")
        if not mark:
            lines.append(line)
            continue
        lines.append(f"set +e\n{command}\nfound=$?\nset -e")
        lines.append(f'if [ $found -ne {code} ]; then echo "ended with $found: {command.strip()!r}" >&2; exit 99; fi')
    return "\n".join(lines)


def play(text: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the blocks of a guide in an empty folder, with this environment's commands."""
    here = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", script(text)]
    return subprocess.run(command, cwd=folder, env={**os.environ, **here}, capture_output=True, text=True, check=False)


def test_the_guide_s_commands_end_as_it_says(tmp_path: Path) -> None:
    text = GUIDE.read_text("utf-8")
    assert {int(code) for code in re.findall(r"# exit (\d+)", text)} == {3, 4, 5, 6, 7, 8, 9, 11}
    done = play(text, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_guide_that_is_wrong_would_be_noticed(tmp_path: Path) -> None:
    wrong = "```sh\nexport FEDMEM_HOME=$PWD\nfedmem erase status --subject ben   # exit 4\n```\n"
    done = play(wrong, tmp_path)
    assert done.returncode == 99
    assert "ended with 3" in done.stderr
