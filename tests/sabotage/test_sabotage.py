"""Every invariant's test is seen to fail when the code is broken.

One TOML file is one sabotage: `invariant`, `why`, `file`, `find` (occurs exactly once), `replace`, and the `test` that
must notice. The runner's own negative controls stand at the end: a change that breaks nothing, and one that breaks
the code rather than the invariant.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
KEYS = {"invariant", "why", "file", "find", "replace", "test"}
REQUIRED = {"I1", "I2", "I4", "I6", "I8", "I9", "I10"}
LOCK, LOCK_TEST = "fedmem/lock.py", "tests/test_lock.py::test_closed"
NAMES = sorted(path.stem for path in HERE.glob("*.toml"))
# The code no longer runs: that says nothing about the invariant.
BROKEN_CODE = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError", "UnboundLocalError")


def load(name: str) -> dict[str, str]:
    """One entry; AssertionError where it is not of the form above."""
    entry: dict[str, str] = tomllib.loads((HERE / f"{name}.toml").read_text("utf-8"))
    assert set(entry) == KEYS, f"{name}: keys are {sorted(KEYS)}"
    assert name.split("-")[0] == entry["invariant"], f"{name}: the file name begins with the invariant"
    return entry


def applicable(entry: dict[str, str], tree: Path) -> str:
    """Why the entry cannot be applied to the tree; empty where it can."""
    path, test = tree / entry["file"], entry["test"]
    test_file = tree / test.split("::")[0]
    if not path.is_file() or not test_file.is_file():
        return f"{entry['file']} or {test_file.name} does not exist"
    source = path.read_text("utf-8")
    if source.count(entry["find"]) != 1:
        return f"`find` occurs {source.count(entry['find'])} times in {entry['file']}; make it exactly one"
    if path.suffix == ".py":
        try:
            compile(source.replace(entry["find"], entry["replace"]), str(path), "exec")
        except SyntaxError as error:
            return f"the sabotaged {entry['file']} does not compile: {error}"
    function = test.rsplit("::", 1)[-1].split("[")[0]
    return "" if f"def {function}(" in test_file.read_text("utf-8") else f"{test_file.name} holds no {function}"


def of_test(outcomes: dict[str, dict[str, str]], test: str) -> list[dict[str, str]]:
    """The outcomes of one named test, all its parameters included."""
    return [value for node, value in outcomes.items() if node == test or node.startswith(f"{test}[")]


def missed(entry: dict[str, str], answer: dict[str, Any]) -> str:
    """Why the sabotage does not count as noticed; empty where the test failed for the right reason."""
    failed = [o for o in of_test(answer["outcomes"], entry["test"]) if o["outcome"] == "failed"]
    if answer["code"] != 1 or not failed:
        return f"{entry['test']} did not fail (exit code {answer['code']}) although: {entry['why']}\n{answer['log']}"
    if all(o["crash"].startswith(BROKEN_CODE) for o in failed):
        return f"the sabotage breaks the code, not the invariant: {failed[0]['crash']}"
    return ""


class Trial:
    """All selected entries on their way through the pool: the tests as they are, and each under its sabotage."""

    def __init__(self, entries: dict[str, dict[str, str]], pool: Any) -> None:
        # Judged before the first job, which changes files of the tree.
        self.unfit = {name: applicable(entry, pool.tree) for name, entry in entries.items()}
        fit = {name: entry for name, entry in entries.items() if not self.unfit[name]}
        tests = sorted({entry["test"] for entry in fit.values()})
        halves = [half for half in (tests[::2], tests[1::2]) if half]
        self._unharmed = {test: future for half in halves for future in [pool.submit(half)] for test in half}
        self._harmed = {name: pool.submit([entry["test"]], patch(entry)) for name, entry in fit.items()}

    def unharmed(self, entry: dict[str, str]) -> dict[str, Any]:
        """What the entry's test gives on the tree as it is."""
        answer: dict[str, Any] = self._unharmed[entry["test"]].result()
        return answer

    def harmed(self, name: str) -> dict[str, Any]:
        """What it gives under the sabotage."""
        answer: dict[str, Any] = self._harmed[name].result()
        return answer


def patch(entry: dict[str, str]) -> dict[str, str]:
    """The change that an entry makes."""
    return {key: entry[key] for key in ("file", "find", "replace")}


@pytest.fixture(scope="module")
def trial(request: pytest.FixtureRequest, pool: Any) -> Trial:
    """Everything is submitted at once; each test below waits for its own."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = {call.params.get("name") for call in calls if call is not None}
    return Trial({name: load(name) for name in NAMES if name in chosen}, pool)


@pytest.mark.parametrize("name", NAMES)
def test_sabotage_is_noticed(name: str, trial: Trial) -> None:
    entry = load(name)
    assert trial.unfit[name] == ""
    whole = trial.unharmed(entry)
    before = of_test(whole["outcomes"], entry["test"])
    if before and all(o["outcome"] == "skipped" for o in before):
        pytest.skip(f"{entry['test']} is skipped on this machine")
    assert before, f"{entry['test']} was not run: {whole['log']}"
    assert all(o["outcome"] == "passed" for o in before), f"{entry['test']} fails without the sabotage: {before}"
    assert missed(entry, trial.harmed(name)) == ""


def test_every_tested_invariant_has_a_sabotage() -> None:
    missing = REQUIRED - {load(name)["invariant"] for name in NAMES}
    assert not missing, f"no tests/sabotage/*.toml for: {', '.join(sorted(missing))}"


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[..., Any]) -> Any:
    """A bench on a tree of two files."""
    tree = tmp_path_factory.mktemp("mini") / "tree"
    for folder in ("fedmem", "tests"):
        (tree / folder).mkdir(parents=True)
    (tree / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--import-mode=importlib"\n')
    (tree / "fedmem/__init__.py").write_text("")
    (tree / "fedmem/lock.py").write_text("CLOSED = True\n\n\ndef closed():\n    return CLOSED\n")
    test = "from fedmem.lock import closed\n\n\ndef test_closed():\n    assert closed()\n"
    (tree / "tests/test_lock.py").write_text(test)
    return new_bench(tree, ("hypothesis",))


@pytest.mark.parametrize(
    ("find", "replace", "noticed"),
    [
        ("CLOSED = True", "CLOSED = False", True),
        ("CLOSED = True", "CLOSED = 1", False),
        ("return CLOSED", "return NEVER_DEFINED", False),
        ("CLOSED = True", "CLOSED = NEVER_DEFINED", False),
        ("return CLOSED", "return 1 / 0", True),
    ],
)
def test_runner_tells_a_noticed_sabotage_from_others(mini: Any, find: str, replace: str, noticed: bool) -> None:
    entry = {"file": LOCK, "find": find, "replace": replace, "test": LOCK_TEST, "why": "a closed lock is open"}
    assert applicable(entry, mini.tree) == ""
    before = (mini.tree / entry["file"]).read_bytes()
    answer = mini.run([entry["test"]], patch(entry))
    assert (missed(entry, answer) == "") is noticed
    assert (mini.tree / entry["file"]).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"find": "OPEN"}, "0 times"),
        ({"find": "CLOSED"}, "2 times"),
        ({"replace": "CLOSED ="}, "does not compile"),
        ({"file": "fedmem/door.py"}, "does not exist"),
        ({"test": "tests/test_lock.py::test_open"}, "holds no test_open"),
    ],
)
def test_runner_refuses_an_entry_that_does_not_apply(mini: Any, change: dict[str, str], said: str) -> None:
    entry = {"file": LOCK, "find": "CLOSED = True", "replace": "", "test": LOCK_TEST}
    assert said in applicable({**entry, **change}, mini.tree)


def test_runner_ends_a_test_that_hangs(mini: Any) -> None:
    hang = {"file": LOCK, "find": "return CLOSED", "replace": "import time; time.sleep(60)"}
    assert mini.run([LOCK_TEST], hang, seconds=1)["code"] == -9
