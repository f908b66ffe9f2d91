"""A device as two real processes: what leaves, what each of them holds, and what is left when one of them dies (I1)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem import erasure
from fedmem.errors import NothingMatched, Refused, RemoteError, StorageError, VerificationFailed
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.gate import Terms
from fedmem.federation.keeper import Keeper
from fedmem.federation.pipe import BadFrame
from fedmem.federation.pipe_port import ENDS
from fedmem.federation.switches import SWITCHES
from fedmem.federation.vault_process import KEPT, host
from fedmem.policy.policy import Policy
from fedmem.vault import egress
from fedmem.vault.egress import Egress
from fedmem.vault.fs import Files
from fedmem.vault.vault import NewRecord, Vault

CHILD = Path(__file__).with_name("flower_process.py")
PLAN = DevicePlan(population=1, rounds=9, unsafe_no_dp=True, unsafe_reason="a toy", run="run-7")
SHAPES = {"b": (3,), "w": (4, 3)}
TERMS = Terms(PLAN, SHAPES)
PUBLIC = ["Bern lies on the Aare.", "The plum tree flowers in April."]
CANARY = "zebrafinch-4711 of the patient"
SPEND = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 2.0, "steps": 10}
VECTOR = np.full(128, 0.5, np.float32)
Opened = Callable[[], Vault]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load()


def record(text: str, topic: str | None) -> NewRecord:
    return NewRecord(text, topic, (0,), VECTOR, "r" * 64)


def make(root: Path, private: list[tuple[str, str]] = ()) -> Opened:
    """A vault with the public records, private ones between them; how it is opened for reading."""
    with Vault.create(root, subject="ada") as vault:
        vault.add_records([record(PUBLIC[0], None), *(record(*one) for one in private), record(PUBLIC[1], None)])
    return lambda: Vault.open(root, subject="ada", write=False)


# With -c, fedmem comes from the folder that the tests run in, as it does for this process.
BOOT = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], {}, '__main__')"


def script(*words: object) -> list[str]:
    """A script of the tests as a process of its own."""
    return [sys.executable, "-c", BOOT, *map(str, words)]


def command(way: str, out: Path) -> list[str]:
    return script(CHILD, json.dumps(PLAN.to_dict()), way, out)


def until(there: Callable[[], Any], seconds: float = 20.0) -> Any:
    limit = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < limit
        time.sleep(0.02)
    return found


def told(out: Path) -> Any:
    return json.loads(until(lambda: out.exists() and out.read_text()))


def few(vault_root: Path) -> Opened:
    return make(vault_root, [(CANARY, "health")])


def many(vault_root: Path) -> Opened:
    return make(vault_root, [(f"{CANARY} {i}", topic) for i in range(40) for topic in ("health", "finance", "notes")])


def learned(vault_root: Path) -> Opened:
    """Private runs by other plans: one finished, one failed, one still open; and an erasure."""
    opened = make(vault_root, [(CANARY, "health"), ("a debt", "finance")])
    with Vault.open(vault_root, subject="ada") as vault:
        for topic, steps in (("health", 10), ("finance", 77)):
            run = vault.begin_run(topic, "r" * 64, {"steps": steps}, "digest", [], {**SPEND, "steps": steps})
            vault.finish_run(run, topic, "r" * 64, b"rows" * 100, 1, 2, 4)
        vault.fail_run(vault.begin_run("health", "r" * 64, {"steps": 3}, "digest", [], SPEND))
        vault.begin_run("health", "r" * 64, {"steps": 4}, "digest", [], SPEND)
        planned = erasure.plan(vault, erasure.Scope.topic("finance"))
        erasure.execute(vault, planned, planned.digest)
    return opened


def damaged(vault_root: Path) -> Opened:
    """Everything private in it fails to open: the cells, and the block's file."""
    opened = learned(vault_root)
    with Vault.open(vault_root, subject="ada") as vault:
        private = vault.ids_of("health")
        with vault.core.database.session() as session:
            for table in ("records", "runs", "blocks"):
                for item in private:
                    session.connection().exec_driver_sql(f"UPDATE {table} SET sealed = x'00' WHERE id = ?", (item,))
    for file in (vault_root / "blocks").iterdir():
        file.write_bytes(b"")
    return opened


def more(vault_root: Path) -> Opened:
    """One shareable record more: the negative control."""
    opened = make(vault_root)
    with Vault.open(vault_root, subject="ada") as vault:
        vault.add_records([record("The Aare joins the Rhine.", None)])
    return opened


# While `many` federates, another program has its vault open for writing.
VAULTS = {"none": make, "many": many, "damaged": damaged, "more": more}


def test_the_bytes_that_leave_are_equal_whatever_is_private(tmp_path: Path, policy: Policy) -> None:
    opened = {name: build(tmp_path / name) for name, build in VAULTS.items()}

    def life(name: str) -> Any:
        out = tmp_path / f"{name}.json"
        released = host(opened[name], TERMS, policy, command("run", out))
        with opened[name]() as vault:
            lines = [line.entry for line in Egress(vault.core).entries()]
        return {**told(out), "released": released, "lines": lines}

    with Vault.open(tmp_path / "many", subject="ada"), ThreadPoolExecutor(2) as pool:
        lives = dict(zip(VAULTS, pool.map(life, VAULTS), strict=True))
    none, control = lives["none"], lives.pop("more")
    for name, other in lives.items():
        assert other["sent"] == none["sent"], name
        assert other["lines"] == none["lines"], name
    assert control["sent"] != none["sent"]
    # An egress line for each message that left, and for none that did not.
    up = [entry for entry in none["sent"] if entry[1] == "up"]
    assert (len(up), none["released"], len(none["sent"])) == (2, 2, 4)
    assert [line.digest for line in none["lines"]] == none["approved"]
    assert [(line.message, line.number, line.nbytes, line.run) for line in none["lines"]] == [
        ("train.anchor", 1, 60, "run-7"), ("train.anchor", 2, 60, "run-7"),
    ]  # fmt: skip
    assert none["approved"][0] != none["approved"][1]


def in_memory(pid: int, needles: list[bytes]) -> list[bool]:
    """Whether each needle lies in readable memory of a process."""
    found = [False] * len(needles)
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            where, rights, *_, name = [*line.split(), ""][:7]
            if "r" not in rights or name.startswith(("[vvar", "[vsyscall")):
                continue
            start, end = (int(part, 16) for part in where.split("-"))
            with contextlib.suppress(OSError):
                data = os.pread(memory.fileno(), end - start, start)
                found = [one or needle in data for one, needle in zip(found, needles, strict=True)]
    return found


def test_the_flower_process_holds_two_pipe_ends_and_nothing_private(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "x")
    opened, out = few(tmp_path / "vault"), tmp_path / "look.json"
    with opened() as vault:
        keys = [*vault.core.table.keys.values()]
    with (tmp_path / "open file").open("w") as held, ThreadPoolExecutor(1) as pool:
        os.set_inheritable(held.fileno(), True)
        hosting = pool.submit(host, opened, TERMS, policy, command("look", out))
        try:
            seen = told(out)
            own = bytes.fromhex(b"".join(bytes([byte]) for byte in CANARY.encode()).hex())
            needles = [own, CANARY.encode("utf-16-le"), *keys, str(tmp_path / "vault").encode()]
            here, there = in_memory(os.getpid(), [own, PUBLIC[0].encode()]), in_memory(seen["pid"], needles)
            public = in_memory(seen["pid"], [PUBLIC[0].encode(), PUBLIC[1].encode()])
            given = Path(f"/proc/{seen['pid']}/environ").read_bytes()
        finally:
            out.with_suffix(".go").touch()
        hosting.result(20)
    assert (here, public) == ([True, True], [True, True])  # the negative control: it is found where it is
    assert there == [False] * len(needles)
    kinds = sorted(link.split(":")[0] for link in seen["held"].values() if not link.startswith("/proc/"))
    assert kinds == ["/dev/null", "/dev/null", "/dev/null", "pipe", "pipe"]
    assert seen["texts"] == PUBLIC
    assert not seen["ends"]  # a process that it starts is not told of the pipe
    assert {name.split(".")[0] for name in seen["modules"]} <= {"fedmem"}
    assert {"fedmem.vault", "fedmem.vault.leaving"} >= set(seen["modules"])
    assert {word.split(b"=")[0].decode() for word in given.split(b"\0")[:-1]} <= {*KEPT, *SWITCHES, ENDS}


def test_records_that_a_stricter_policy_takes_back_are_not_handed_out(tmp_path: Path, policy: Policy) -> None:
    opened = make(tmp_path / "vault")
    with Vault.open(tmp_path / "vault", subject="ada") as vault:
        vault.add_records([record("My diagnosis is diabetes; the doctor prescribed insulin.", None)])
    with Keeper(opened, policy) as keeper:
        assert keeper.texts() == PUBLIC


def hosted(root: Path, out: Path, way: str = "rounds") -> "subprocess.Popen[bytes]":
    """A vault process of its own around a Flower process without end."""
    return subprocess.Popen(script(__file__, root, out, way), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def answers(out: Path) -> list[tuple[int, int]]:
    lines = out.read_text().splitlines() if out.exists() else []
    return [(int(number), int(pid)) for number, pid in (line.split() for line in lines if line.count(" ") == 1)]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("killed", ["vault", "flower"])
def test_killed_at_any_moment_the_other_ends_and_no_answer_is_without_its_line(tmp_path: Path, killed: str) -> None:
    opened, out = few(tmp_path / "vault"), tmp_path / "answers"
    process = hosted(tmp_path / "vault", out)
    until(lambda: len(answers(out)) > 5)
    child = answers(out)[0][1]
    os.kill(process.pid if killed == "vault" else child, signal.SIGKILL)
    _, said = process.communicate(timeout=10)
    until(lambda: gone(child), 5)
    assert process.returncode == (-signal.SIGKILL if killed == "vault" else RemoteError.exit_code)
    assert killed == "vault" or b"process" in said
    with opened() as vault:
        entered = [line.entry.number for line in Egress(vault.core).entries()]
    left = [number for number, _ in answers(out)]
    assert entered[: len(left)] == left
    assert len(entered) - len(left) in (0, 1)  # over-reports by one at most, and never under-reports


def test_a_training_that_never_asks_again_ends_with_the_vault_process(tmp_path: Path) -> None:
    few(tmp_path / "vault")
    out = tmp_path / "answers"
    process = hosted(tmp_path / "vault", out, "train")
    child = until(lambda: answers(out))[0][1]
    process.kill()
    process.communicate()
    until(lambda: gone(child), 5)


def failing(root: Path, how: Any) -> Opened:
    """A vault whose egress log cannot be written."""

    class Full(Files):
        def append(self, path: Path, at: int, data: bytes) -> None:
            raise how

    return lambda: Vault.open(root, subject="ada", write=False, files=Full())


def test_what_cannot_be_entered_does_not_leave_and_both_end(tmp_path: Path, policy: Policy) -> None:
    few(tmp_path / "vault")
    out = tmp_path / "answers"
    opened = failing(tmp_path / "vault", StorageError("The disk is full."))
    with pytest.raises(StorageError):
        host(opened, TERMS, policy, command("rounds", out))
    assert not out.exists()
    with opened() as vault:
        assert Egress(vault.core).entries() == []


def test_a_vault_that_does_not_open_or_has_a_changed_ledger_starts_no_flower_process(
    tmp_path: Path, policy: Policy
) -> None:
    opened, out = few(tmp_path / "vault"), tmp_path / "answers"
    with pytest.raises(Refused):
        host(lambda: Vault.open(tmp_path / "vault", subject="eve", write=False), TERMS, policy, command("rounds", out))
    (tmp_path / "vault" / egress.NAME).write_bytes(b"{}\n")
    with pytest.raises(VerificationFailed):
        host(opened, TERMS, policy, command("rounds", out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-c", "pass"], None),
        (["-c", "import sys; sys.exit(3)"], RemoteError),
        (
            ["-c", "import os; os.write(int(os.environ['FEDMEM_VAULT_PIPE'].split(',')[1]), b'GET / HTTP/1.1' * 9)"],
            BadFrame,
        ),
    ],
)
def test_a_flower_process_that_is_something_else(tmp_path: Path, policy: Policy, words: list[str], error: Any) -> None:
    opened = few(tmp_path / "vault")
    expected = pytest.raises(error) if error else contextlib.nullcontext()
    with expected:
        assert host(opened, TERMS, policy, [sys.executable, *words]) == 0


def test_a_command_that_does_not_exist(tmp_path: Path, policy: Policy) -> None:
    with pytest.raises(NothingMatched):
        host(few(tmp_path / "vault"), TERMS, policy, [str(tmp_path / "nothing")])


def erased(root: Path, scope: erasure.Scope) -> erasure.Outcome:
    with Vault.open(root, subject="ada") as vault:
        planned = erasure.plan(vault, scope)
        return erasure.execute(vault, planned, planned.digest)


def test_an_erasure_of_private_records_is_given_way_to_and_the_rounds_go_on(tmp_path: Path) -> None:
    opened, out = few(tmp_path / "vault"), tmp_path / "answers"
    process = hosted(tmp_path / "vault", out)
    try:
        until(lambda: len(answers(out)) > 3)
        assert erased(tmp_path / "vault", erasure.Scope.topic("health")).state == "completed"
        before = len(answers(out))
        until(lambda: len(answers(out)) > before + 5)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    with opened() as vault:
        numbers = [line.entry.number for line in Egress(vault.core).entries()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_an_erasure_of_a_shared_record_ends_the_process_that_holds_it(tmp_path: Path) -> None:
    opened, out = few(tmp_path / "vault"), tmp_path / "answers"
    with opened() as vault:
        shared = vault.records(None)[0].id
    process = hosted(tmp_path / "vault", out)
    until(lambda: len(answers(out)) > 3)
    assert erased(tmp_path / "vault", erasure.Scope.record(shared)).state == "completed"
    _, said = process.communicate(timeout=10)
    assert process.returncode == Refused.exit_code, said
    assert gone(answers(out)[0][1])


def vault_process(root: str, out: str, way: str) -> None:
    """What `hosted` runs."""
    from fedmem.errors import FedmemError

    try:
        opened = lambda: Vault.open(Path(root), subject="ada", write=False)  # noqa: E731
        host(opened, TERMS, Policy.load(), command(way, Path(out)), patience=5.0)
    except FedmemError as error:
        sys.stderr.write(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    assert not {"flwr", "torch", "ray"} & sys.modules.keys()  # docs/design.md, §10: no Flower in the vault process
    vault_process(*sys.argv[1:])
