"""`fedmem client run` and a device's account: several federations one after the other, through the command itself."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedmem import Client
from fedmem.cli.main import main
from fedmem.federation import device_dp, wire
from fedmem.federation.device import Device, TrainConfig
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.rounds import Coordinator, RoundSettings
from fedmem.federation.runtime import DEVICE, Runtime
from fedmem.federation.socket_port import SocketPort
from fedmem.privacy.stream import PrivacyStream
from fedmem.sdk.places import vault_root
from fedmem.training.release import Release
from fedmem.vault.store import egress_log as egress

TERMS = """
release = "{release}"
parts = ["level-1"]
[plan]
{plan}
[rounds]
[local]
length = 48
"""
POLICY = 'schema = "fedmem.policy/1"\nname = "own"\n[federation]\n'
NOISY = {"population": 100, "rounds": 3, "noise_multiplier": 1.2}  # about 6.7 for its three rounds
UNSAFE = {"population": 2, "rounds": 3, "unsafe_no_dp": True, "unsafe_reason": "a toy"}


@pytest.fixture
def ana(home: Path) -> Path:
    """A vault with a shareable record; its folder."""
    with Client.open("ana", keystore="keyfile") as client:
        assert client.add("Bern lies on the Aare.").decision.placement == "shared"
    return vault_root("ana")


@pytest.fixture
def command(ana: Path, release: Release, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of `client run` for a run with this name, plan and policy."""

    def words(run: str, policy: str = "default", **plan: Any) -> list[str]:
        lines = [f"{name} = {json.dumps(value)}" for name, value in {**plan, "run": run}.items()]
        terms = tmp_path / f"{run}.toml"
        terms.write_text(TERMS.format(release=release.digest, plan="\n".join(lines)))
        if policy != "default":
            (tmp_path / "own.toml").write_text(POLICY + policy)
            policy = str(tmp_path / "own.toml")
        places = ["--release", str(release.root), "--terms", str(terms), "--policy", policy]
        return ["client", "run", "--subject", "ana", *places, "--no-supernode", "--json"]

    return words


def start(words: list[str]) -> "subprocess.Popen[str]":
    code = "import runpy; runpy.run_module('fedmem.cli.main', run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def refused(words: list[str]) -> tuple[int, str]:
    """The exit code of a command that ends by itself, and the name of its error."""
    out, _ = (process := start(words)).communicate(timeout=60)
    return process.returncode, json.loads(out)["data"]["error"]


@contextmanager
def joined(words: list[str]) -> Iterator[tuple[Runtime, list[str]]]:
    """A vault process that serves, and what it said before it did."""
    process, said = start(words), list[str]()
    try:
        while not said or DEVICE not in said[-1]:
            line = process.stderr.readline()  # type: ignore[union-attr]
            assert line, (process.wait(10), process.stdout.read())  # type: ignore[union-attr]
            said.append(line)
        yield Runtime(Path(said[-1].split(f"{DEVICE}=")[1].strip())), said
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
    assert process.returncode == 0


def answers(runtime: Runtime, numbers: list[int]) -> list[tuple[bool, bool]]:
    """For each round: did the network-facing process train, and is its answer an update."""
    plan, shapes, trained = runtime.terms().plan, runtime.terms().shapes, list[int]()
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        trained.append(config.round)
        return {name: value + np.float32(0.01 * config.round) for name, value in params.items()}

    outcome = []
    for number in numbers:
        noise = None if plan.unsafe_no_dp else PrivacyStream(bytes(32), b"a test")
        coordinator = Coordinator(params, plan, noise, RoundSettings(), number - 1)
        request = coordinator.open([1000 + node for node in range(plan.population)]).request
        port = SocketPort(runtime.folder, runtime.terms(), runtime.token())
        got = Device(0, port, plan, shapes, train).answer(request)
        port.close()
        outcome.append((number in trained, any(bool(array.any()) for array in got.arrays.values())))
    return outcome


def account(policy: str = "default") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    result = CliRunner().invoke(main, ["client", "egress", "--subject", "ana", "--policy", policy, "--json"])
    data = json.loads(result.stdout)["data"]
    return data["epsilon"], data["entries"]


def test_a_second_federation_is_refused_where_both_together_pass_the_budget(command) -> None:
    assert account()[0]["lifetime"] == 0.0
    with joined(command("first", **NOISY)) as (runtime, _):
        assert answers(runtime, [1, 2, 3]) == [(True, True)] * 3
    spent, entries = account()
    first = DevicePlan(**NOISY, run="first")
    assert spent["lifetime"] == pytest.approx(device_dp.figures(first, 3).readers)
    assert (spent["budget"], spent["delta"], spent["federations"]) == (10.0, 1e-5, 1)
    assert spent["left"] == pytest.approx(10.0 - spent["lifetime"])

    costly = {"population": 100, "rounds": 3, "noise_multiplier": 0.6}
    assert device_dp.figures(DevicePlan(**costly), 1).readers < 10 - 1.0  # alone it would be joined
    assert refused(command("second", **costly)) == (4, "BudgetExceeded")
    assert account() == (spent, entries)  # nothing was answered, nothing was charged

    with joined(command("third", **NOISY)) as (runtime, said):
        assert any("covers" in line and "of the plan's 3 rounds" in line for line in said)
        outcome = answers(runtime, [1, 2, 3])
    granted = sum(update for _, update in outcome)
    assert 0 < granted < 3
    assert outcome == [(True, True)] * granted + [(False, False)] * (3 - granted)
    assert spent["lifetime"] < account()[0]["lifetime"] <= 10.0
    assert len(account()[1]) == 6  # the zeros are entered too
    assert refused(command("fourth", **NOISY)) == (4, "BudgetExceeded")


def test_a_plan_without_noise_is_joined_where_the_devices_own_policy_says_so(command) -> None:
    assert refused(command("first", **UNSAFE)) == (4, "Refused")
    with joined(command("first", "allow_no_dp = true", **UNSAFE)) as (runtime, _):
        assert answers(runtime, [1]) == [(True, True)]
    spent, _ = account()
    assert (spent["lifetime"], spent["left"]) == (None, 0.0)
    assert refused(command("second", **NOISY)) == (4, "BudgetExceeded")


def test_a_plan_that_samples_is_charged_when_it_is_joined(command) -> None:
    plan = {"population": 1000, "sampling_rate": 0.3, "rounds": 3, "noise_multiplier": 1.0}
    for _ in range(2):
        with joined(command("first", **plan)):
            pass
    spent, (line,) = account()
    expected = device_dp.figures(DevicePlan(**plan), 3).readers
    assert spent["lifetime"] == pytest.approx(expected)
    assert (line["message"], line["bytes"], line["epsilon"]) == ("join", 0, pytest.approx(expected))


def test_a_policy_can_name_less_and_never_more(command) -> None:
    assert refused(command("first", "epsilon = 0.5", **NOISY)) == (4, "BudgetExceeded")
    costly = {"population": 100, "rounds": 1, "noise_multiplier": 0.3}
    assert refused(command("first", "epsilon = 1000.0", **costly)) == (4, "BudgetExceeded")


def test_an_edited_or_shortened_account_joins_nothing(command, ana: Path) -> None:
    with joined(command("first", **NOISY)) as (runtime, _):
        answers(runtime, [1, 2, 3])
    log = ana / egress.NAME
    whole = log.read_bytes()
    first, second, third = whole.splitlines(keepends=True)
    for content in (first, second + first + third, None):
        os.unlink(log) if content is None else log.write_bytes(content)
        assert refused(command("second", **NOISY)) == (6, "VerificationFailed")
    log.write_bytes(whole)
    assert account()[0]["federations"] == 1


def test_another_answer_in_a_round_is_refused_after_a_restart(command) -> None:
    with joined(command("first", **NOISY)) as (runtime, _):
        assert answers(runtime, [1]) == [(True, True)]
    with joined(command("first", **NOISY)) as (runtime, _):
        assert answers(runtime, [1, 2]) == [(True, True)] * 2  # the same bytes again
        plan, shapes = runtime.terms().plan, runtime.terms().shapes
        params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        noise = PrivacyStream(bytes(32), b"a test")
        request = Coordinator(params, plan, noise, RoundSettings()).open(list(range(1000, 1100))).request
        port = SocketPort(runtime.folder, runtime.terms(), runtime.token())
        other = Device(0, port, plan, shapes, lambda params, _: {n: v + np.float32(0.5) for n, v in params.items()})
        assert not any(array.any() for array in other.answer(request).arrays.values())
        port.close()
    assert account()[0]["lifetime"] == pytest.approx(device_dp.figures(DevicePlan(**NOISY), 2).readers)
