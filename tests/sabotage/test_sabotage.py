"""Every invariant's test is seen to fail when the code is broken.

One TOML file is one sabotage: `invariant`, `why`, the `target` (`package.module::Class.method`), in it the node to
`select`, the `operator` that changes it (operators.py), for two operators `with`, and the `test` that must notice.
`slow = true` leaves an entry to `make slow`. The runner's own negative controls stand at the end: a change that breaks
nothing, and one that breaks the code rather than the invariant.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sabotage.operators import OPERATORS, Unfit, change

HERE = Path(__file__).parent
KEYS = {"invariant", "why", "target", "select", "operator", "test"}
REQUIRED = {"I1", "I2", "I4", "I6", "I8", "I9", "I10", "DP"}
LOCK_TEST = "tests/test_lock.py::test_closed"
NAMES = sorted(path.stem for path in HERE.glob("*.toml"))
# The code no longer runs: that says nothing about the invariant.
BROKEN_CODE = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError", "UnboundLocalError")


def load(name: str) -> dict[str, Any]:
    """Read one entry. Raises AssertionError where it is not of the form above."""
    entry: dict[str, Any] = tomllib.loads((HERE / f"{name}.toml").read_text("utf-8"))
    assert entry.get("operator") in OPERATORS, f"{name}: operators are {', '.join(OPERATORS)}"
    keys = KEYS | ({"with"} if entry["operator"] in ("compare", "replace") else set())
    assert set(entry) - {"slow"} == keys, f"{name}: keys are {sorted(keys)}"
    assert entry.get("slow", True) is True, f"{name}: slow is true or left out"
    assert name.split("-")[0] == entry["invariant"], f"{name}: the file name begins with the invariant"
    return entry


def patch(entry: dict[str, Any], tree: Path) -> dict[str, str]:
    """Return the file that an entry changes, and its new source. Raises Unfit where the entry does not apply."""
    module, _, path = entry["target"].partition("::")
    places = (f"{module.replace('.', '/')}{end}" for end in (".py", "/__init__.py"))
    file = next((place for place in places if (tree / place).is_file()), None)
    if file is None:
        raise Unfit(f"the module {module} does not exist")
    source = (tree / file).read_text("utf-8")
    try:
        changed = change(source, path, entry["select"], entry["operator"], entry.get("with", ""))
    except Unfit as error:
        raise Unfit(f"{entry['target']}: {error}") from error
    return {"file": file, "source": changed}


def check_test(test: str, tree: Path) -> None:
    """Raise Unfit unless the tree holds this test."""
    file, function = tree / test.split("::")[0], test.rsplit("::", 1)[-1].split("[")[0]
    if not file.is_file():
        raise Unfit(f"{test.split('::')[0]} does not exist")
    if f"def {function}(" not in file.read_text("utf-8"):
        raise Unfit(f"{file.name} holds no {function}")


def of_test(outcomes: dict[str, dict[str, str]], test: str) -> list[dict[str, str]]:
    """Return the outcomes of one named test, all its parameters included."""
    return [value for node, value in outcomes.items() if node == test or node.startswith(f"{test}[")]


def missed(entry: dict[str, Any], answer: dict[str, Any]) -> str:
    """Return why the sabotage does not count as noticed; empty where the test failed for the right reason."""
    failed = [o for o in of_test(answer["outcomes"], entry["test"]) if o["outcome"] == "failed"]
    if answer["code"] != 1 or not failed:
        return f"{entry['test']} did not fail (exit code {answer['code']}) although: {entry['why']}\n{answer['log']}"
    if all(o["crash"].startswith(BROKEN_CODE) for o in failed):
        return f"the sabotage breaks the code, not the invariant: {failed[0]['crash']}"
    return ""


class Trial:
    """All selected entries on their way through the pool: the tests as they are, and each under its sabotage."""

    def __init__(self, entries: dict[str, dict[str, Any]], pool: Any) -> None:
        # Judged before the first job, which changes files of the tree.
        self.unfit: dict[str, Unfit] = {}
        patches = {name: made for name, entry in entries.items() if (made := self._patch(name, entry, pool.tree))}
        tests = sorted({entries[name]["test"] for name in patches})
        halves = [half for half in (tests[::2], tests[1::2]) if half]
        self._unharmed = {test: future for half in halves for future in [pool.submit(half)] for test in half}
        self._harmed = {name: pool.submit([entries[name]["test"]], made) for name, made in patches.items()}

    def _patch(self, name: str, entry: dict[str, Any], tree: Path) -> dict[str, str] | None:
        try:
            check_test(entry["test"], tree)
            return patch(entry, tree)
        except Unfit as error:
            self.unfit[name] = error
            return None

    def unharmed(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return what the entry's test gives on the tree as it is."""
        answer: dict[str, Any] = self._unharmed[entry["test"]].result()
        return answer

    def harmed(self, name: str) -> dict[str, Any]:
        """Return what it gives under the sabotage."""
        answer: dict[str, Any] = self._harmed[name].result()
        return answer


@pytest.fixture(scope="module")
def trial(request: pytest.FixtureRequest, pool: Any) -> Trial:
    """Submit everything at once; each test below waits for its own."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = {call.params.get("name") for call in calls if call is not None}
    return Trial({name: load(name) for name in NAMES if name in chosen}, pool)


def marked(name: str) -> Any:
    """Return the entry's name as a parameter, marked where the entry is slow."""
    return pytest.param(name, marks=[pytest.mark.slow] if load(name).get("slow") else [])


@pytest.mark.parametrize("name", [marked(name) for name in NAMES])
def test_sabotage_is_noticed(name: str, trial: Trial) -> None:
    entry = load(name)
    assert name not in trial.unfit, trial.unfit[name]
    whole = trial.unharmed(entry)
    before = of_test(whole["outcomes"], entry["test"])
    if before and all(o["outcome"] == "skipped" for o in before):
        pytest.skip(f"{entry['test']} is skipped on this machine")
    assert before, f"{entry['test']} was not run: {whole['log']}"
    assert all(o["outcome"] == "passed" for o in before), f"{entry['test']} fails without the sabotage: {before}"
    assert missed(entry, trial.harmed(name)) == ""


def test_every_tested_invariant_has_sabotages_in_the_fast_suite() -> None:
    entries = [load(name) for name in NAMES]
    fast = Counter(entry["invariant"] for entry in entries if "slow" not in entry)
    invariants = REQUIRED | {entry["invariant"] for entry in entries}
    missing = sorted(invariant for invariant in invariants if fast[invariant] < 2)
    assert not missing, f"fewer than two tests/sabotage/*.toml without `slow` for: {', '.join(missing)}"


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory, new_bench: Callable[..., Any]) -> Any:
    """A bench on a tree of two files."""
    tree = tmp_path_factory.mktemp("mini") / "tree"
    for folder in ("fedmem", "tests"):
        (tree / folder).mkdir(parents=True)
    (tree / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--import-mode=importlib"\n')
    (tree / "fedmem/__init__.py").write_text("")
    (tree / "fedmem/lock.py").write_text("CLOSED: bool = True\n\n\ndef closed():\n    return CLOSED\n")
    test = "from fedmem.lock import closed\n\n\ndef test_closed():\n    assert closed()\n"
    (tree / "tests/test_lock.py").write_text(test)
    return new_bench(tree, ("hypothesis",))


def mini_entry(path: str, select: str, operator: str, **changes: str) -> dict[str, str]:
    """Return an entry about the lock of the mini tree."""
    entry = {"target": f"fedmem.lock::{path}", "select": select, "operator": operator, "test": LOCK_TEST}
    return {**entry, "why": "a closed lock is open", **changes}


@pytest.mark.parametrize(
    ("path", "select", "replacement", "noticed"),
    [
        ("CLOSED", "constant:True", "False", True),
        ("CLOSED", "constant:True", "1", False),
        ("closed", "return > .value", "NEVER_DEFINED", False),
        ("CLOSED", "constant:True", "NEVER_DEFINED", False),
        ("closed", "return > .value", "1 / 0", True),
    ],
)
def test_runner_tells_a_noticed_sabotage_from_others(
    mini: Any, path: str, select: str, replacement: str, noticed: bool
) -> None:
    entry = mini_entry(path, select, "replace", **{"with": replacement})
    check_test(entry["test"], mini.tree)
    before = (mini.tree / "fedmem/lock.py").read_bytes()
    answer = mini.run([entry["test"]], patch(entry, mini.tree))
    assert (missed(entry, answer) == "") is noticed
    assert (mini.tree / "fedmem/lock.py").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": "fedmem.lock::OPEN"}, "`OPEN` of `OPEN` matches 0 nodes"),
        ({"select": "name"}, r"`name` matches 2 nodes, not one \(line 1: CLOSED; line 1: bool\)"),
        ({"with": "CLOSED ="}, "`with` does not compile"),
        ({"with": "True"}, "changes nothing"),
        ({"target": "fedmem.door::CLOSED"}, "fedmem.door does not exist"),
        ({"test": "tests/test_lock.py::test_open"}, "holds no test_open"),
        ({"test": "tests/test_door.py::test_open"}, "test_door.py does not exist"),
    ],
)
def test_runner_refuses_an_entry_that_does_not_apply(mini: Any, change: dict[str, str], reason: str) -> None:
    entry = mini_entry("CLOSED", "constant:True", "replace", **{"with": "False"})
    trial = Trial({"lock": {**entry, **change}}, mini)
    assert re.search(reason, str(trial.unfit["lock"]))


def test_runner_ends_a_test_that_hangs(mini: Any) -> None:
    hang = mini_entry("closed", "return", "replace", **{"with": "import time; time.sleep(60)"})
    assert mini.run([LOCK_TEST], patch(hang, mini.tree), seconds=1)["code"] == -9
