"""A device as two real processes: what leaves, what each of them holds, and what is left when one of them dies (I1)."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem import erasure
from fedmem.device.runtime_folder import place, runtime_folder
from fedmem.device.served_vault import ServedVault
from fedmem.device.supernode import PASSED, environment
from fedmem.device.vault_process import Server, listening
from fedmem.errors import StorageError
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.offline import SWITCHES
from fedmem.federation.port import NoApproval
from fedmem.federation.rounds import RoundSettings
from fedmem.federation.runtime import DEVICE, Runtime
from fedmem.federation.terms import Agreement, LocalSettings
from fedmem.policy.policy import Policy
from fedmem.storage.files import Files
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.vault import NewRecord, Vault

CHILD = Path(__file__).with_name("flower_process.py")
PLAN = DevicePlan(population=1, rounds=9, unsafe_no_dp=True, unsafe_reason="a toy", run="run-7")
SHAPES = {"b": (3,), "w": (4, 3)}
AGREEMENT = Agreement("ab" * 32, ("anchor",), PLAN, RoundSettings(), LocalSettings(48))
PUBLIC = ["Bern lies on the Aare.", "The plum tree flowers in April."]
CANARY = "zebrafinch-4711 of the patient"
SPEND = {"mechanism": "poisson-gaussian/1", "sampling_rate": 0.1, "noise_multiplier": 2.0, "steps": 10}
VECTOR = np.full(128, 0.5, np.float32)
CONSENT = """
schema = "fedmem.policy/1"
name = "consent"
[federation]
allow_no_dp = true
"""
Opened = Callable[[], Vault]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A policy that allows plans without noise, as the plan of these tests is."""
    file = tmp_path_factory.mktemp("policy") / "consent.toml"
    file.write_text(CONSENT)
    return Policy.load(file)


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


@contextlib.contextmanager
def device(root: Path, opened: Opened, policy: Policy) -> Iterator[tuple[Runtime, Server, ServedVault]]:
    """The vault process of a device, in a thread of this one."""
    over = threading.Event()
    with (
        ServedVault(opened, policy) as vault,
        runtime_folder(root, AGREEMENT, SHAPES, root) as runtime,
        listening(runtime, vault) as server,
    ):
        thread = threading.Thread(target=server.serve, args=(over.is_set,))
        thread.start()
        try:
            yield runtime, server, vault
        finally:
            over.set()
            thread.join()


def started(runtime: Runtime, way: str, out: Path) -> "subprocess.Popen[bytes]":
    """A network-facing process of the device, with the environment that a SuperNode gets."""
    return subprocess.Popen(
        script(CHILD, way, out), env=environment(os.environ, runtime), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


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
        with vault.core.writing(), vault.core.database.session() as session:
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
        with device(tmp_path / name, opened[name], policy) as (runtime, server, _):
            child = started(runtime, "run", out)
            _, said = child.communicate(timeout=60)
            assert child.returncode == 0, said
            released = server.released
        with opened[name]() as vault:
            lines = [line.entry for line in EgressLog(vault.core).entries()]
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


def test_the_network_facing_process_holds_a_socket_and_nothing_private(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "x")
    opened, out = few(tmp_path / "vault"), tmp_path / "look.json"
    with opened() as vault:
        keys = [*vault.core.table.keys.values()]
    with (tmp_path / "open file").open("w") as held, device(tmp_path / "vault", opened, policy) as (runtime, *_):
        os.set_inheritable(held.fileno(), True)
        child = started(runtime, "look", out)
        try:
            seen = told(out)
            own = bytes.fromhex(b"".join(bytes([byte]) for byte in CANARY.encode()).hex())
            needles = [own, CANARY.encode("utf-16-le"), *keys, str(tmp_path / "vault").encode()]
            here, there = in_memory(os.getpid(), [own, PUBLIC[0].encode()]), in_memory(seen["pid"], needles)
            public = in_memory(seen["pid"], [PUBLIC[0].encode(), PUBLIC[1].encode()])
            given = Path(f"/proc/{seen['pid']}/environ").read_bytes()
            words, token = Path(f"/proc/{seen['pid']}/cmdline").read_bytes(), runtime.token()
        finally:
            out.with_suffix(".go").touch()
            child.communicate(timeout=20)
    assert (here, public) == ([True, True], [True, True])  # the negative control: it is found where it is
    assert there == [False] * len(needles)
    kinds = sorted(link.split(":")[0] for link in seen["held"].values() if not link.startswith("/proc/"))
    assert kinds == ["/dev/null", "/dev/null", "pipe", "socket"]  # the pipe is its stderr
    assert seen["texts"] == PUBLIC
    assert seen["modules"] == []
    assert runtime.folder.name.encode() in given  # the negative control
    assert not any(secret in data for secret in (token, token.hex().encode()) for data in (given, words))
    assert {word.split(b"=")[0].decode() for word in given.split(b"\0")[:-1]} <= {*PASSED, *SWITCHES, DEVICE}


def hosted(root: Path) -> "subprocess.Popen[bytes]":
    """A vault process of its own; it listens when this returns."""
    process = subprocess.Popen(script(__file__, root), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"listens\n"
    return process


def answers(out: Path) -> list[tuple[int, int]]:
    lines = out.read_text().splitlines() if out.exists() else []
    return [(int(number), int(pid)) for number, pid in (line.split() for line in lines if line.count(" ") == 1)]


def test_a_killed_vault_process_ends_the_answers_and_none_is_without_its_line(tmp_path: Path) -> None:
    opened, out = few(tmp_path / "vault"), tmp_path / "answers"
    process = hosted(tmp_path / "vault")
    child = started(Runtime(place(tmp_path / "vault")), "rounds", out)
    until(lambda: len(answers(out)) > 5)
    process.kill()
    process.communicate()
    child.communicate(timeout=10)
    assert child.returncode != 0
    with opened() as vault:
        entered = [line.entry.number for line in EgressLog(vault.core).entries()]
    left = [number for number, _ in answers(out)]
    assert entered[: len(left)] == left
    assert len(entered) - len(left) in (0, 1)  # over-reports by one at most, and never under-reports


def test_a_killed_network_facing_process_costs_its_own_connection(tmp_path: Path, policy: Policy) -> None:
    opened, out = few(tmp_path / "vault"), tmp_path / "answers"
    with device(tmp_path / "vault", opened, policy) as (runtime, *_):
        child = started(runtime, "rounds", out)
        until(lambda: len(answers(out)) > 5)
        child.kill()
        child.communicate()
        # The same answers, zeros, may be given again; other ones in these rounds would be refused.
        again = started(runtime, "rounds", tmp_path / "again")
        until(lambda: len(answers(tmp_path / "again")) > 5)
        again.kill()
        again.communicate()


def test_a_training_ends_with_the_vault_process(tmp_path: Path) -> None:
    few(tmp_path / "vault")
    out = tmp_path / "answers"
    process = hosted(tmp_path / "vault")
    child = started(Runtime(place(tmp_path / "vault")), "train", out)
    until(lambda: answers(out))
    process.kill()
    process.communicate()
    child.communicate(timeout=10)
    assert out.read_text().endswith("stopped\n")


def failing(root: Path, how: Any) -> Opened:
    """A vault whose egress log cannot be written."""

    class Full(Files):
        def append(self, path: Path, at: int, data: bytes, *, durable: bool = True) -> None:
            raise how

    return lambda: Vault.open(root, subject="ada", write=False, files=Full())


def test_what_cannot_be_entered_does_not_leave(tmp_path: Path, policy: Policy) -> None:
    few(tmp_path / "vault")
    out = tmp_path / "sent"
    opened = failing(tmp_path / "vault", StorageError("The disk is full."))
    with device(tmp_path / "vault", opened, policy) as (runtime, server, _):
        child = started(runtime, "run", out)
        child.communicate(timeout=60)
        assert (child.returncode, server.released) == (NoApproval().code, 0)
    assert not out.exists()
    with opened() as vault:
        assert EgressLog(vault.core).entries() == []


def erased(root: Path, scope: erasure.Scope) -> erasure.Outcome:
    with Vault.open(root, subject="ada") as vault:
        planned = erasure.plan(vault, scope)
        return erasure.execute(vault, planned, planned.digest)


def test_an_erasure_of_private_records_is_given_way_to_and_the_rounds_go_on(tmp_path: Path, policy: Policy) -> None:
    opened, out = few(tmp_path / "vault"), tmp_path / "answers"
    with device(tmp_path / "vault", opened, policy) as (runtime, *_):
        child = started(runtime, "rounds", out)
        try:
            until(lambda: len(answers(out)) > 3)
            assert erased(tmp_path / "vault", erasure.Scope.topic("health")).state == "completed"
            before = len(answers(out))
            until(lambda: len(answers(out)) > before + 5)
            assert child.poll() is None
        finally:
            child.kill()
            child.communicate()
    with opened() as vault:
        numbers = [line.entry.number for line in EgressLog(vault.core).entries()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_an_erasure_of_a_shared_record_stops_the_training_that_got_it(tmp_path: Path, policy: Policy) -> None:
    opened, out = few(tmp_path / "vault"), tmp_path / "answers"
    with opened() as vault:
        shared = vault.records(None)[0].id
    with device(tmp_path / "vault", opened, policy) as (runtime, *_):
        child = started(runtime, "train", out)
        until(lambda: answers(out))
        assert erased(tmp_path / "vault", erasure.Scope.topic("health")).state == "completed"
        time.sleep(1)
        assert child.poll() is None
        assert erased(tmp_path / "vault", erasure.Scope.record(shared)).state == "completed"
        child.communicate(timeout=10)
        assert out.read_text().endswith("stopped\n")
        look = started(runtime, "look", tmp_path / "look.json")
        (tmp_path / "look.go").touch()
        look.communicate(timeout=20)
        assert told(tmp_path / "look.json")["texts"] == PUBLIC[1:]


def vault_process(root: Path) -> None:
    """What `hosted` runs."""
    opened = lambda: Vault.open(root, subject="ada", write=False)  # noqa: E731
    with (
        ServedVault(opened, Policy.load()) as vault,
        runtime_folder(root, AGREEMENT, SHAPES, root) as runtime,
        listening(runtime, vault) as server,
    ):
        print("listens", flush=True)
        server.serve(lambda: False)


if __name__ == "__main__":
    assert not {"flwr", "torch", "ray"} & sys.modules.keys()  # docs/design.md, §2: no Flower in the vault process
    vault_process(Path(sys.argv[1]))
