"""Fork server: loads what is heavy once, then runs pytest in a fresh child for every job.

Invariants
- The parent never imports fedmem, so every child imports it anew, from the tree it was started in.
- A child sees the sabotaged file on disk; the file is as before when the answer is out.
- Nothing but answers goes to stdout: one line of JSON a job.

A job is `{"tests": [...], "patch": null | {"file", "source"}, "seconds": 120}`; its answer is
`{"code", "outcomes": {node: {"outcome", "crash"}}, "foreign": [modules from elsewhere], "log": tail}`.

Usage, inside a copy of the repository: `python tests/sabotage/driver.py torch opacus < jobs`
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path.cwd().resolve()
SCRATCH = ROOT.parent / "scratch"


class Recorder:
    """pytest plugin: what became of each test, and whether fedmem came from this tree."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call, and a set-up or tear-down that did not pass."""
        if report.when == "call" or (not report.passed and report.nodeid not in self.outcomes):
            outcome = report.outcome if report.when == "call" or report.skipped else "error"
            crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
            self.outcomes[report.nodeid] = {"outcome": outcome, "crash": crash}


def foreign() -> list[str]:
    """Modules of fedmem that were loaded from another tree."""
    loaded = [module for name, module in sys.modules.items() if name.split(".")[0] == "fedmem"]
    files = {module.__name__: module.__file__ for module in loaded if getattr(module, "__file__", None)}
    return [name for name, file in files.items() if not Path(file).resolve().is_relative_to(ROOT)]


@contextlib.contextmanager
def patched(patch: dict[str, str] | None) -> Iterator[None]:
    """Give one file of the tree another source, and its own again at the end."""
    if patch is None:
        yield
        return
    file = ROOT / patch["file"]
    before = file.read_text("utf-8")
    file.write_text(patch["source"], "utf-8")
    try:
        yield
    finally:
        file.write_text(before, "utf-8")


def child(tests: list[str], answer: Path, log: Path) -> int:
    """In the fork: run the tests and write what became of them."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    recorder = Recorder()
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", f"--basetemp={SCRATCH / 'tmp'}"]
    # hypothesis was loaded by the parent, before pytest could rewrite its assertions.
    options += ["-p", "no:faker", "-p", "no:anyio", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, *tests], plugins=[recorder])
    answer.write_text(json.dumps({"code": int(code), "outcomes": recorder.outcomes, "foreign": foreign()}), "utf-8")
    sys.stdout.flush()
    return int(code)


def waited(pid: int, seconds: float) -> int:
    """Exit code of the child; its whole process group is ended after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One job in one forked child."""
    answer, log = SCRATCH / "answer.json", SCRATCH / "log"
    answer.unlink(missing_ok=True)
    with patched(job["patch"]):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = child(job["tests"], answer, log)
            except BaseException:  # noqa: BLE001 -- the child ends here, whatever it was
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = waited(pid, job["seconds"])
    result = json.loads(answer.read_text("utf-8")) if answer.exists() else {"outcomes": {}, "foreign": []}
    return {**result, "code": code, "log": log.read_text("utf-8", "replace")[-4000:]}


def main() -> None:
    """Answer jobs until stdin closes."""
    SCRATCH.mkdir(exist_ok=True)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # unloading what is heavy takes seconds
