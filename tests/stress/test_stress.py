"""The stress: a sound vault survives it, a broken one is noticed, and each rule of the check can fail.

`python -m tests.stress --minutes 10 --json` is the long run, `make slow` runs three minutes, this suite some seconds.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fedmem.vault.vault import Vault
from tests.stress import checker, content, run
from tests.stress.actions import Writer
from tests.stress.checker import Contents, Faults, judge, judge_answers
from tests.stress.journal import FAILED, OK, UNKNOWN, Call, Journal, read, read_all
from tests.stress.restored import judge_backup

ZEROS = ("lost", "erased_left", "torn", "unasked", "untyped_errors", "false_alarms", "hung", "plaintext")


def stressed(folder: Path, *arguments: str, broken: str = "") -> dict[str, Any]:
    """Return the figures of the command, in a process of its own, with the code `broken` before it."""
    code = f"import sys\n{broken}\nfrom tests.stress.__main__ import main\nmain()"
    command = [sys.executable, "-c", code, "--json", "--folder", str(folder), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode in (0, 12), done.stderr
    envelope = json.loads(done.stdout)
    assert envelope["schema"] == "fedmem.stress/1"
    data: dict[str, Any] = envelope["data"]
    assert (done.returncode == 12) == (data["bad"] > 0)
    return data


def assert_sound(data: dict[str, Any]) -> None:
    assert {name: data[name] for name in ZEROS if data[name]} == {}, data["faults"]
    assert (data["unclean"], data["bad"]) == ([], 0), data
    assert data["longest_wait_s"] <= data["timeout_s"] + 5


def test_a_vault_survives_processes_threads_and_kills(tmp_path: Path) -> None:
    data = stressed(tmp_path / "s", "--minutes", "0.15", "--seed", "16", "--forks", "0")
    assert_sound(data)
    assert min(data[name] for name in ("acknowledged", "kills", "erasures", "erased")) > 0, data


@pytest.mark.slow  # in some hundred forks a child has hung at the lock of a functools.cached_property
def test_it_survives_forks_of_processes_with_threads(tmp_path: Path) -> None:
    data = stressed(tmp_path / "s", "--minutes", "0.12", "--seed", "16", "--forks", "0.1", "--processes", "4")
    assert_sound(data)
    assert data["forks"] > 0


@pytest.mark.slow
def test_three_minutes_of_everything(tmp_path: Path) -> None:
    data = stressed(tmp_path / "s", "--minutes", "3", "--seed", "16")
    assert_sound(data)
    least = {"acknowledged": 4500, "kills": 150, "forks": 15, "erasures": 15, "backups": 1, "kits": 1, "stops": 1}
    assert {name: data[name] for name, number in least.items() if data[name] < number} == {}


FORGETS = """
from fedmem.vault.vault import Vault
from fedmem.storage.ids import new_id
real, calls = Vault.add_records, iter(range(10**9))
def add_records(self, records):
    return [new_id() for _ in records] if next(calls) % 20 == 19 else real(self, records)
Vault.add_records = add_records
"""
ERASES_NOTHING = """
from fedmem import erasure
from fedmem.erasure import Outcome
erasure.execute = lambda vault, planned, digest: Outcome("made up", "completed", vault.root)
"""
KEEPS_A_COPY = """
from fedmem import erasure
real = erasure.execute
def execute(vault, planned, digest):
    kept = vault.records_by_id([item.id for item in planned.items if item.kind == "record"][:1])
    outcome = real(vault, planned, digest)
    vault.add_records(kept)
    return outcome
erasure.execute = execute
"""
RAISES = """
import sqlite3
from fedmem.vault.vault import Vault
real, calls = Vault.search, iter(range(10**9))
def search(self, vector, k):
    if next(calls) % 3 == 2:
        raise sqlite3.OperationalError("disk I/O error")
    return real(self, vector, k)
Vault.search = search
"""
WRITES_CLEAR = """
from fedmem.vault.vault import Vault
real = Vault.add_records
def add_records(self, records):
    (self.root / "blocks" / "note").write_text(records[0].text)
    return real(self, records)
Vault.add_records = add_records
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "count"),
    [
        pytest.param(FORGETS, "lost", id="an addition is acknowledged and not written"),
        pytest.param(ERASES_NOTHING, "erased_left", id="an erasure says that it is completed and erases nothing"),
        pytest.param(KEEPS_A_COPY, "erased_left", id="an erasure leaves one record under another id"),
        pytest.param(RAISES, "untyped_errors", id="a search raises an error of SQLite"),
        pytest.param(WRITES_CLEAR, "plaintext", id="an addition leaves a text in clear"),
    ],
)
def test_a_broken_vault_is_noticed(tmp_path: Path, broken: str, count: str) -> None:
    few = ("--processes", "4", "--threads", "2", "--forks", "0")
    assert stressed(tmp_path / "s", "--minutes", "0.12", "--seed", "16", *few, broken=broken)[count] > 0


def test_a_vault_that_forgets_an_acknowledged_record_is_noticed(tmp_path: Path) -> None:
    few = ("--processes", "2", "--threads", "2", "--forks", "0")
    assert stressed(tmp_path / "s", "--minutes", "0.04", "--seed", "16", *few, broken=FORGETS)["lost"] > 0


def add(ids: Sequence[str], outcome: str = OK, begun: float = 0.0) -> Call:
    """An addition of records whose digests are "d-" and their ids."""
    result = {OK: {"ids": list(ids)}, FAILED: {"type": "StorageError", "typed": True}, UNKNOWN: {}}[outcome]
    return Call("add", {"digests": [f"d-{item}" for item in ids]}, begun, outcome, result, begun + 1)


def erase(ids: Sequence[str], outcome: str = OK, error: str = "PartialErasure", begun: float = 2.0) -> Call:
    result = {OK: {}, FAILED: {"type": error, "typed": True}, UNKNOWN: {}}[outcome]
    return Call("erase", {"ids": list(ids), "salts": []}, begun, outcome, result, begun + 1)


def stored(*ids: str, keyed: Sequence[str] = (), blocks: Sequence[str] = (), charged: Sequence[str] = ()) -> Contents:
    records = {item: f"d-{item}" for item in ids}
    return Contents(records, {item: f"d-{item}" for item in blocks}, frozenset([*ids, *keyed]), frozenset(charged))


def counts(faults: Faults) -> list[int]:
    """How many are lost, left, torn, unasked."""
    return [len(part) for part in faults.parts()]


def final(calls: Sequence[Call], contents: Contents) -> list[int]:
    return counts(judge(calls, contents, calls, is_final=True))


@pytest.mark.parametrize(
    ("calls", "contents", "expected"),
    [
        ([add("ab")], stored("a", "b"), [0, 0, 0, 0]),
        ([add("ab")], stored("a"), [1, 0, 0, 0]),
        ([add("ab")], Contents({"a": "d-a", "b": "mixed up"}, {}, frozenset("ab"), frozenset()), [1, 0, 0, 1]),
        ([add("ab", UNKNOWN)], stored("a", "b"), [0, 0, 0, 0]),
        ([add("ab", UNKNOWN)], stored(), [0, 0, 0, 0]),
        ([add("ab", UNKNOWN)], stored("a"), [0, 0, 1, 0]),
        ([add("ab", FAILED)], stored(), [0, 0, 0, 0]),
        ([add("ab", FAILED)], stored("a"), [0, 0, 0, 1]),
        ([add("a")], stored("a", "b"), [0, 0, 0, 1]),
        ([add("a")], Contents({"a": "d-a", "b": "d-a"}, {}, frozenset("ab"), frozenset()), [0, 0, 0, 2]),
        ([add("ab"), erase("a")], stored("b"), [0, 0, 0, 0]),
        ([add("ab"), erase("a")], stored("a", "b"), [0, 1, 0, 0]),
        ([add("ab"), erase("a")], stored("b", keyed="a"), [0, 1, 0, 0]),
        ([add("ab"), erase("a")], Contents({"b": "d-b", "c": "d-a"}, {}, frozenset("bc"), frozenset()), [0, 1, 0, 0]),
        ([add("ab"), erase("a")], stored(), [1, 0, 0, 0]),
        ([add("ab"), erase("ab", FAILED)], stored(), [0, 0, 0, 0]),
        ([add("ab"), erase("ab", FAILED)], stored("a"), [0, 1, 0, 0]),
        ([add("ab"), erase("ab", FAILED, "Refused")], stored("a", "b"), [0, 0, 0, 0]),
        ([add("ab"), erase("ab", FAILED, "Refused")], stored("a"), [1, 0, 0, 0]),
        ([add("ab"), erase("ab", UNKNOWN)], stored(), [0, 0, 0, 0]),
        ([add("ab"), erase("ab", UNKNOWN)], stored("a", "b"), [0, 0, 0, 0]),
        ([add("ab"), erase("ab", UNKNOWN)], stored("b"), [0, 0, 1, 0]),
        ([Call("begin", {}, 0, OK, {"run": "r"}, 1)], stored(charged="r"), [0, 0, 0, 0]),
        ([Call("begin", {}, 0, OK, {"run": "r"}, 1)], stored(), [1, 0, 0, 0]),
        ([Call("finish", {"digest": "d-x"}, 0, OK, {"block": "x"}, 1)], stored(blocks="x"), [0, 0, 0, 0]),
        ([Call("finish", {"digest": "d-x"}, 0, OK, {"block": "x"}, 1)], stored(), [1, 0, 0, 0]),
        ([Call("finish", {"digest": "d-y"}, 0, OK, {"block": "x"}, 1)], stored(blocks="x"), [1, 0, 0, 0]),
    ],
)
def test_the_rules(calls: list[Call], contents: Contents, expected: list[int]) -> None:
    assert final(calls, contents) == expected


def test_what_was_asked_while_the_vault_was_read_may_be_there_or_not() -> None:
    before = [add("ab")]
    assert counts(judge(before, stored("b", "c"), [*before, erase("a", UNKNOWN), add("c", UNKNOWN)])) == [0, 0, 0, 0]
    assert counts(judge(before, stored("a", "b"), [*before, erase("a"), add("c")])) == [0, 0, 0, 0]
    assert counts(judge(before, stored("b", "x"), [*before, erase("b")])) == [1, 0, 0, 1]


def found(op: str, begun: float, **ids: str) -> Call:
    return Call(op, {"ids": list(ids)}, begun, OK, {"found": ids}, begun + 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (found("search", 4.0, b="d-b"), [0, 0, 0, 0]),
        (found("search", 2.5, a="d-a"), [0, 0, 0, 0]),  # it began before the erasure was acknowledged
        (found("search", 4.0, a="d-a"), [0, 1, 0, 0]),
        (found("search", 4.0, b="d-c"), [1, 0, 0, 0]),
        (Call("read", {"ids": ["b"]}, 4, FAILED, {"type": "NothingMatched", "typed": True}, 5), [1, 0, 0, 0]),
        (Call("read", {"ids": ["a"]}, 4, FAILED, {"type": "NothingMatched", "typed": True}, 5), [0, 0, 0, 0]),
        (Call("inherited", {}, 4, OK, {}, 5), [0, 0, 0, 1]),
        (Call("inherited", {}, 4, FAILED, {"type": "InheritedVault", "typed": True}, 5), [0, 0, 0, 0]),
    ],
)
def test_the_rules_of_answers(answer: Call, expected: list[int]) -> None:
    assert counts(judge_answers([add("ab"), erase("a"), answer])) == expected


def test_a_journal_keeps_what_was_asked_and_drops_half_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    number = journal.ask("add", digests=["d"])
    journal.ask("search")
    journal.end(number, OK, ids=["a"])
    with journal.path.open("ab") as file:
        file.write(b'{"n":2,"op":"add"')
    (add_call, search) = read(journal.path)
    assert (add_call.op, add_call.outcome, add_call.asked, add_call.result) == (
        "add",
        OK,
        {"digests": ["d"]},
        {"ids": ["a"]},
    )
    assert (search.outcome, search.ended) == (UNKNOWN, float("inf"))
    assert 0 <= add_call.seconds < 60
    assert [call.op for call in read_all(tmp_path)] == ["add", "search"]


def test_a_text_in_clear_and_an_erased_ciphertext_are_found(tmp_path: Path) -> None:
    for name in ("vault", "home", "copies"):
        (tmp_path / name).mkdir()
    (tmp_path / "vault" / "a").write_bytes(b".." + content.new_text(None).encode())
    (tmp_path / "copies" / "b").write_bytes(b".." + content.TOPICS[3].encode())
    (tmp_path / "home" / "c").write_bytes(b"...")
    (tmp_path / "vault" / "d").write_bytes(b"x" + bytes(range(16)))
    assert len(run.plaintext(tmp_path)) == 2
    call = erase("a")
    call.asked["salts"] = [bytes(range(16)).hex()]
    assert len(run.remains_of(tmp_path, [call])) == 1
    assert run.remains_of(tmp_path, [erase("a", UNKNOWN)]) == []


def backed_up(base: Path) -> list[Call]:
    """Return the calls of a small run: additions, a backup, and an addition after it."""
    for name in ("journals", "copies"):
        (base / name).mkdir(parents=True)
    with Vault.create(base / "vault", subject=content.SUBJECT) as vault:
        writer = Writer(vault, Journal(base / "journals"), Random(0), base)
        for work in (writer.add_batch, writer.learn, writer.backup, writer.add):
            work()
    return read_all(base / "journals")


def test_the_newest_backup_is_restored_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    calls = backed_up(tmp_path)
    assert [call.op for call in calls] == ["add", "begin", "checkpoint", "finish", "backup", "add"]
    assert counts(judge_backup(tmp_path, calls)) == [0, 0, 0, 0]
    earlier = add(["elsewhere"], begun=calls[0].begun)
    earlier.ended = earlier.begun
    assert counts(judge_backup(tmp_path, [*calls, earlier])) == [1, 0, 0, 0]
    shutil.rmtree(tmp_path / "copies")
    assert counts(judge_backup(tmp_path, calls)) == [1, 0, 0, 0]
    assert counts(judge_backup(tmp_path, [*calls, erase("a", begun=calls[-1].ended)])) == [0, 0, 0, 0]


def test_a_record_whose_parts_do_not_belong_together_is_recognised() -> None:
    text, other = content.new_text(content.TOPICS[0]), content.new_text(content.TOPICS[1])
    assert not content.is_mixed_up(content.record(text))
    for broken in ({"topic": content.TOPICS[1]}, {"topic": None}, {"path": (1,)}, {"vector": content.vector_of(other)}):
        fields = vars(content.record(text)) | broken
        assert content.is_mixed_up(type(content.record(text))(**fields))


def test_a_run_counts_every_kind_of_fault() -> None:
    good = dict.fromkeys(ZEROS, 0) | {"unclean": [], "longest_wait_s": 34.9, "timeout_s": 30.0}
    assert run.bad(good) == 0
    assert all(run.bad(good | {name: 1}) for name in ZEROS if name != "plaintext")
    assert run.bad(good | {"unclean": ["an erasure is partial"]}) == run.bad(good | {"longest_wait_s": 35.1}) == 1
    assert "PartialErasure" not in checker.ALARMS
