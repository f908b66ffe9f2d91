"""`fedmem client`: train private blocks on this device, in the foreground or in the background.

`fedmem.cli.egress` shows the messages that left the device. `fedmem.cli.client_run` takes part in a federation.

Invariants
- Only states and step numbers are shown. They are public. A loss is never shown.
- A training in the background gets its passphrase through a pipe, never by an argument, the environment or a file.
- Ctrl-C and SIGTERM pause a training after its current step, with a sealed checkpoint.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.client_run import run
from fedmem.cli.egress import egress
from fedmem.cli.options import Secret, confirm, open_vault, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from fedmem.device.session_lock import SessionStatus
    from fedmem.device.training_sessions import SessionResult, Stop
    from fedmem.policy.policy import Topic

UNITS = {"s": 1, "m": 60, "h": 3600}
SIZES = {"MB": 10**6, "GB": 10**9}


@click.group()
def client() -> None:
    """Train private blocks on this device, take part in a federation, and show what left this device."""


client.add_command(egress)
client.add_command(run)


@client.command(epilog="Example: fedmem client train health --release releases/r1 --subject ana --deadline 10m")
@click.argument("topic")
@vault_options
@click.option("--release", required=True, type=click.Path(path_type=Path), help="Folder of the release to train on.")
@click.option("--policy", default="default", show_default=True, help="The policy that sets the budget.")
@click.option("--epsilon", type=float, help="Part of the topic's budget to spend. The default is all of it.")
@click.option("--deadline", metavar="TIME", help="Pause after 90s, 10m, 2h, or at a time as 2026-11-22T06:00+01:00.")
@click.option("--memory", metavar="SIZE", help="Use less memory than this: 800MB, 1.5GB.")
@click.option("--background", is_flag=True, help="Return when the run is charged, and train without a terminal.")
@json_option
def train(topic: str, subject: str, vault_path: str | None, secret: Secret, background: bool, **options: Any) -> None:
    """Train the private block of TOPIC under differential privacy, or continue a paused training.

    The topic's budget is charged once, before the first step. Other programs can use the vault during the training. The
    exit code is 4 if records or plan changed after a pause. That run has then failed and stays charged, and the same
    command starts a new run.
    """
    from fedmem.device.training_sessions import Limits
    from fedmem.device.training_sessions import train as train_session

    limits = Limits(parse_deadline(options["deadline"]), parse_size(options["memory"]))
    topic_budget = find_topic(topic, options["policy"])
    if background:
        started = train_in_background(topic, subject, vault_path, secret, options)
        emit("client.train", started, lambda out: pairs(out, started.items()), "`fedmem client status` shows it.")
        return
    from fedmem.device.learning import default_plan
    from fedmem.sdk.opening import open_release

    release = open_release(options["release"])
    plan = None if options["epsilon"] is None else default_plan(options["epsilon"])
    with (
        open_vault(subject, vault_path, secret, write=True) as vault,
        stop_on_signal() as stop,
        step_progress() as progress,
    ):
        result = train_session(vault, release, topic_budget, plan, limits, stop=stop, progress=progress)
    emit_result(result)


@client.command(epilog="Example: fedmem client status --subject ana --json")
@vault_options
@json_option
def status(subject: str, vault_path: str | None, secret: Secret) -> None:
    """Show the state of each training (waiting, running, paused, done or failed) and its current step."""
    from fedmem.device.training_sessions import training_statuses

    with open_vault(subject, vault_path, secret, write=False) as vault:
        statuses = [asdict(training) for training in training_statuses(vault)]
    if not statuses:
        say("No trainings yet.")
    columns = ("run", "topic", "release", "state", "step", "steps", "block", "message")
    rows = [[training[name] for name in columns] for training in statuses]
    emit("client.status", {"trainings": statuses}, lambda out: table(out, columns, rows))


@client.command(epilog="Example: fedmem client pause --subject ana")
@vault_options
@json_option
def pause(subject: str, vault_path: str | None, secret: Secret) -> None:
    """Pause the running training: it saves a checkpoint after its current step. `client train` continues it."""
    from fedmem.device.training_sessions import pause as request_pause

    with open_vault(subject, vault_path, secret, write=False) as vault:
        data = asdict(request_pause(vault))
    emit("client.pause", data, lambda out: pairs(out, data.items()), "`fedmem client status` shows it.")


@client.command(epilog="Example: fedmem client cancel health --subject ana --yes")
@click.argument("name")
@vault_options
@click.option("--dry-run", is_flag=True, help="Show the training that would be ended, and end nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed without a terminal.")
@json_option
def cancel(name: str, subject: str, vault_path: str | None, secret: Secret, dry_run: bool, yes: bool) -> None:
    """End the training NAME (a topic, or a run's id) for good. Its privacy cost stays charged."""
    from fedmem.device.training_sessions import cancel as cancel_training
    from fedmem.device.training_sessions import cancellable

    with open_vault(subject, vault_path, secret, write=True) as vault:
        training = cancellable(vault, name)
        if not dry_run:
            confirm("End this training for good? It stays charged.", yes)
            training = cancel_training(vault, training.run)
    data = asdict(training)
    emit("client.cancel", data, lambda out: pairs(out, data.items()))
    if not dry_run:
        say("The run ended as failed. It stays charged to the topic's budget.")


def find_topic(topic: str, policy: str) -> "Topic":
    """Return a topic of a policy, with its budget.

    Args:
        topic: Name of the topic.
        policy: Name of a policy, or its TOML file.

    Raises:
        NothingMatched: The policy has no such topic.
    """
    from fedmem.errors import NothingMatched
    from fedmem.policy.policy import Policy

    topics = Policy.load(policy).topics
    if topic not in topics:
        raise NothingMatched(f"The policy has no topic of that name. It has: {', '.join(sorted(topics))}.")
    return topics[topic]


def parse_deadline(text: str | None) -> datetime | None:
    """Return the time that `--deadline` names.

    Args:
        text: A duration from now (`90s`, `10m`, `2h`) or an ISO time, which is local time without a zone. None is no
            deadline.

    Raises:
        UsageError: The text is neither.
    """
    from fedmem.errors import UsageError

    if text is None:
        return None
    try:
        if text[-1:] in UNITS:
            return datetime.now(UTC) + timedelta(seconds=float(text[:-1]) * UNITS[text[-1]])
        deadline = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError("A deadline is a duration, as 90s, 10m or 2h, or a time, as 2026-11-22T06:00+01:00.") from None
    return deadline.astimezone()  # a time without a zone is local time


def parse_size(text: str | None) -> int | None:
    """Return the number of bytes that `--memory` names.

    Args:
        text: A number of MB or GB, such as `1.5GB`. None is no limit.

    Raises:
        UsageError: The text is not such a number.
    """
    from fedmem.errors import UsageError

    if text is None:
        return None
    try:
        return int(float(text[:-2]) * SIZES[text[-2:].upper()])
    except (KeyError, ValueError, OverflowError):
        raise UsageError("A memory limit is a number of MB or GB, as 800MB or 1.5GB.") from None


@contextmanager
def stop_on_signal() -> "Iterator[Stop]":
    """Yield a function that returns True after SIGTERM or SIGINT. A second signal ends the program at once."""
    signals: list[int] = []

    def record_signal(number: int, _: Any) -> None:
        signals.append(number)
        signal.signal(number, previous_handlers[number])

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous_handlers = {int(number): signal.signal(number, record_signal) for number in numbers}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def step_progress() -> Iterator[Any]:
    """Prepare the process for a training, and yield the function that shows its current step."""
    from fedmem.cli.allocator import keep_buffers
    from fedmem.cli.progress import reporter

    keep_buffers()
    with reporter() as report:
        yield lambda step, total: report("train", step, total)


def emit_result(result: "SessionResult") -> None:
    """Write the result of a training session.

    Args:
        result: The result.
    """
    data = asdict(result)
    emit("client.train", data, lambda out: pairs(out, data.items()))
    if result.state == "paused":
        say("Paused, with a sealed checkpoint. The same command continues from there; nothing is charged again.")


def train_in_background(
    topic: str, subject: str, vault_path: str | None, secret: Secret, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Start the training in a process without a terminal, and wait until it is charged.

    Args:
        topic: Name of the topic.
        subject: Name of the subject.
        vault_path: Folder of the vault; None for the subject's own vault.
        secret: Returns the passphrase.
        options: Values of the other options of `client train`.

    Returns:
        The data of the envelope: the run, its state and its steps.

    Raises:
        Busy: A training of this vault is running.
        FedmemError: The error of the training, if it ended before it was charged.
    """
    from fedmem.device import session_lock
    from fedmem.errors import Busy

    secrets: list[str] = []

    def remember_secret() -> str:
        secrets.append(secret())
        return secrets[-1]

    # This shows whether the keystore needs the secret, and whether the secret is right.
    with open_vault(subject, vault_path, remember_secret, write=False) as vault:
        root = vault.root
    if session_lock.is_training_running(root):
        raise Busy("A training of this vault is already running. See `fedmem client status`, or pause it first.")
    words = ["client", "train", topic, "--subject", subject, "--vault", str(root), "--json"]
    words += ["--release", str(options["release"].absolute()), "--policy", options["policy"]]
    words += [
        word
        for name in ("epsilon", "deadline", "memory")
        if options[name] is not None
        for word in (f"--{name}", str(options[name]))
    ]
    status = wait_until_charged(spawn_command(words, secrets[-1] if secrets else None), root)
    return {"run": status.run, "state": "running", "step": status.step, "steps": status.steps, "block": None}


def spawn_command(words: list[str], secret: str | None) -> int:
    """Start `fedmem WORDS` in a new process and session, and return the process id.

    Args:
        words: The arguments of the command line; none is secret.
        secret: A passphrase to pass through a pipe, or None.
    """
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    command = [sys.executable, "-m", "fedmem.cli.main", *words]
    if secret is None:
        return os.posix_spawn(command[0], command, os.environ, file_actions=null, setsid=True)
    read_end, write_end = os.pipe()
    try:
        os.set_inheritable(read_end, True)
        command += ["--passphrase-fd", str(read_end)]
        child = os.posix_spawn(command[0], command, os.environ, file_actions=null, setsid=True)
        os.write(write_end, secret.encode() + b"\n")  # a passphrase fits into a pipe's buffer
        return child
    finally:
        os.close(read_end)
        os.close(write_end)


def wait_until_charged(child: int, root: Path) -> "SessionStatus":
    """Return the status of a training when it is charged.

    Args:
        child: Id of the process that trains; it is a child of this one.
        root: Folder of the vault.

    Raises:
        FedmemError: The error of the training, if it ended before it was charged.
    """
    from fedmem import errors
    from fedmem.device import session_lock

    while True:
        ended_pid, code = os.waitpid(child, os.WNOHANG)
        status = session_lock.read_status(root)
        if status is not None and status.pid == child:
            if status.run:
                return status
            if ended_pid and status.error:
                raise getattr(errors, status.error, errors.FedmemError)(status.message)
        if ended_pid:
            error = errors.FedmemError("The training ended before it began. Train without --background to see why.")
            error.exit_code = max(1, os.waitstatus_to_exitcode(code))
            raise error
        time.sleep(0.05)
