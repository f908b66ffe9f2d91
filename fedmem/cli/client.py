"""`fedmem client`: train private blocks on this device, in sessions, in the foreground or in the background.

What left the device is `fedmem.cli.egress`; taking part in a federation is `fedmem.cli.client_run`.

Invariants
- What is shown are states and step numbers, which are public; never a loss.
- A training in the background gets its passphrase through a pipe; arguments, environment and files hold none.
- Ctrl-C and the system's request to end pause a training after its step, with a sealed checkpoint.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.client_run import run
from fedmem.cli.egress import egress
from fedmem.cli.options import Secret, confirm, opened, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from fedmem.device.session_lock import SessionStatus
    from fedmem.device.training_sessions import SessionResult, Stop, TrainingStatus
    from fedmem.device.vault_access import SharedAccess

UNITS = {"s": 1, "m": 60, "h": 3600}
SIZES = {"MB": 10**6, "GB": 10**9}


@click.group()
def client() -> None:
    """Train private blocks on this device, take part in a federation, and see what left this device."""


client.add_command(egress)
client.add_command(run)


@client.command(epilog="Example: fedmem client train health --release releases/r1 --subject ana --deadline 10m")
@click.argument("topic")
@vault_options
@click.option("--release", required=True, type=click.Path(path_type=Path), help="Folder of the release to train on.")
@click.option("--policy", default="default", show_default=True, help="The policy whose budget holds.")
@click.option("--epsilon", type=float, help="Spend this much of the topic's budget; else all of it.")
@click.option("--deadline", metavar="TIME", help="Pause then: 90s, 10m, 2h, or a time as 2026-11-22T06:00+01:00.")
@click.option("--memory", metavar="SIZE", help="Stay below this much memory: 800MB, 1.5GB.")
@click.option("--background", is_flag=True, help="Return once it is charged, and go on without a terminal.")
@json_option
def train(topic: str, subject: str, vault: str | None, secret: Secret, background: bool, **options: Any) -> None:
    """Train the private block of TOPIC under differential privacy, or go on with a training that was paused.

    The topic's budget is charged before the first step, once. Other programs may use the vault meanwhile. Ends with 4
    where records or plan changed since the pause: that run has failed and stays charged; the next one is a new one.
    """
    from fedmem.device.training_sessions import Limits
    from fedmem.device.training_sessions import train as session

    limits, known = Limits(moment(options["deadline"]), size(options["memory"])), budget_of(topic, options["policy"])
    if background:
        ended = in_background(topic, subject, vault, secret, options)
        emit("client.train", ended, lambda out: pairs(out, ended.items()), "`fedmem client status` shows it.")
        return
    from fedmem.device.learning import default_plan
    from fedmem.sdk.client import open_release

    release = open_release(options["release"])
    plan = None if options["epsilon"] is None else default_plan(options["epsilon"])
    with door(subject, vault, secret) as shared, stopping() as stop, steps() as progress:
        trained = session(shared, release, known, plan, limits, stop=stop, progress=progress)
    told(trained)


@client.command(epilog="Example: fedmem client status --subject ana --json")
@vault_options
@json_option
def status(subject: str, vault: str | None, secret: Secret) -> None:
    """Show how each training stands: waiting, running, paused, done or failed, and the step it is at."""
    from fedmem.device.training_sessions import trainings

    with opened(subject, vault, secret, write=False) as found:
        known = [described(one) for one in trainings(found)]
    if not known:
        say("No trainings yet.")
    columns = ("run", "topic", "release", "state", "step", "steps", "block", "message")
    rows = [[one[name] for name in columns] for one in known]
    emit("client.status", {"trainings": known}, lambda out: table(out, columns, rows))


@client.command(epilog="Example: fedmem client pause --subject ana")
@vault_options
@json_option
def pause(subject: str, vault: str | None, secret: Secret) -> None:
    """Ask the training that runs to save itself and stop after its step. `client train` goes on with it."""
    from fedmem.device.training_sessions import pause as ask

    with opened(subject, vault, secret, write=False) as found:
        one = described(ask(found))
    emit("client.pause", one, lambda out: pairs(out, one.items()), "`fedmem client status` shows it.")


@client.command(epilog="Example: fedmem client cancel health --subject ana --yes")
@click.argument("name")
@vault_options
@click.option("--dry-run", is_flag=True, help="Show what would be ended, and end nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@json_option
def cancel(name: str, subject: str, vault: str | None, secret: Secret, dry_run: bool, yes: bool) -> None:
    """End the training NAME (a topic, or a run's id) for good. It stays charged: what was spent is spent."""
    from fedmem.device.training_sessions import cancel as end
    from fedmem.device.training_sessions import cancellable

    with door(subject, vault, secret) as shared:
        one = cancellable(shared.vault, name)
        if not dry_run:
            confirm("End this training for good? It stays charged.", yes)
            one = end(shared, one.run)
    data = described(one)
    emit("client.cancel", data, lambda out: pairs(out, data.items()))
    if not dry_run:
        say("The run ended as failed. It stays charged to the topic's budget.")


def door(subject: str, vault: str | None, secret: Secret) -> "SharedAccess":
    """The vault that the options mean, left to other programs but for moments."""
    from fedmem.device.vault_access import SharedAccess

    return SharedAccess(lambda write: opened(subject, vault, secret, write=write))


def budget_of(topic: str, policy: str) -> Any:
    """The topic of the policy. Raises NothingMatched."""
    from fedmem.errors import NothingMatched
    from fedmem.policy.policy import Policy

    topics = Policy.load(policy).topics
    if topic not in topics:
        raise NothingMatched(f"The policy has no topic of that name. It has: {', '.join(sorted(topics))}.")
    return topics[topic]


def moment(given: str | None) -> datetime | None:
    """The time that `--deadline` means: a while from now, or a moment. Raises UsageError."""
    from fedmem.errors import UsageError

    if given is None:
        return None
    try:
        if given[-1:] in UNITS:
            return datetime.now(UTC) + timedelta(seconds=float(given[:-1]) * UNITS[given[-1]])
        found = datetime.fromisoformat(given)
    except (ValueError, OverflowError):
        raise UsageError("A deadline is a while, as 90s, 10m or 2h, or a time, as 2026-11-22T06:00+01:00.") from None
    return found.astimezone()  # without a zone it is meant as the clock on the wall shows it


def size(given: str | None) -> int | None:
    """The bytes that `--memory` means. Raises UsageError."""
    from fedmem.errors import UsageError

    if given is None:
        return None
    try:
        return int(float(given[:-2]) * SIZES[given[-2:].upper()])
    except (KeyError, ValueError, OverflowError):
        raise UsageError("A memory limit is a number of MB or GB, as 800MB or 1.5GB.") from None


@contextmanager
def stopping() -> "Iterator[Stop]":
    """Whether the person or the system asked to end; asked a second time, the program ends at once."""
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    before = {int(number): signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def steps() -> Iterator[Any]:
    """Progress by step; malloc keeps its buffers, where that helps."""
    from fedmem.cli.allocator import keep_buffers
    from fedmem.cli.progress import reporter

    keep_buffers()
    with reporter() as report:
        yield lambda step, total: report("train", step, total)


def told(trained: "SessionResult") -> None:
    """Write how a session ended."""
    from dataclasses import asdict

    data = asdict(trained)
    emit("client.train", data, lambda out: pairs(out, data.items()))
    if trained.state == "paused":
        say("Paused, with a sealed checkpoint. The same command goes on from there; nothing is charged again.")


def described(one: "TrainingStatus") -> dict[str, Any]:
    """A training as the envelope holds it."""
    from dataclasses import asdict

    return asdict(one)


def in_background(
    topic: str,
    subject: str,
    vault: str | None,
    secret: Secret,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Start the training in a process without a terminal, and wait until it is charged. Raises what it fails with."""
    from fedmem.device import session_lock as trainer
    from fedmem.errors import Busy

    asked: list[str] = []

    def noted() -> str:
        asked.append(secret())
        return asked[-1]

    with opened(subject, vault, noted, write=False) as found:  # which keystore it has, and whether the secret is right
        root = found.root
    if trainer.runs(root):
        raise Busy("A training of this vault runs already. See `fedmem client status`, or pause it first.")
    words = ["client", "train", topic, "--subject", subject, "--vault", str(root), "--json"]
    words += ["--release", str(options["release"].absolute()), "--policy", options["policy"]]
    words += [
        word
        for name in ("epsilon", "deadline", "memory")
        if options[name] is not None
        for word in (f"--{name}", str(options[name]))
    ]
    said = begun(spawned(words, asked[-1] if asked else None), root)
    return {"run": said.run, "state": "running", "step": said.step, "steps": said.steps, "block": None}


def spawned(words: list[str], secret: str | None) -> int:
    """The id of a process of its own session that runs these words; `secret` goes through a pipe."""
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    command = [sys.executable, "-m", "fedmem.cli.main", *words]
    if secret is None:
        return os.posix_spawn(command[0], command, os.environ, file_actions=null, setsid=True)
    there, here = os.pipe()
    try:
        os.set_inheritable(there, True)
        command += ["--passphrase-fd", str(there)]
        child = os.posix_spawn(command[0], command, os.environ, file_actions=null, setsid=True)
        os.write(here, secret.encode() + b"\n")  # a passphrase fits into a pipe's buffer
        return child
    finally:
        os.close(there)
        os.close(here)


def begun(child: int, root: Path) -> "SessionStatus":
    """What the training says once it is charged. Raises its error where it ended before."""
    from fedmem import errors
    from fedmem.device import session_lock as trainer

    while True:
        ended, code = os.waitpid(child, os.WNOHANG)
        said = trainer.said(root)
        if said is not None and said.pid == child:
            if said.run:
                return said
            if ended and said.error:
                raise getattr(errors, said.error, errors.FedmemError)(said.message)
        if ended:
            error = errors.FedmemError("The training ended before it began. Train without --background to see why.")
            error.exit_code = max(1, os.waitstatus_to_exitcode(code))
            raise error
        time.sleep(0.05)
