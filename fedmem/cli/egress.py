"""`fedmem client egress`: list every message that left this device, and show what all federations cost it together.

Invariants
- Only public facts of messages are shown: type, round, size, digest, ε. The content of a message is never shown.
- Of a ledger that was edited or shortened nothing is shown, and the exit code is 6.
- `--export` writes a new file and never overwrites one.
"""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.options import Secret, open_vault, vault_options
from fedmem.cli.output import emit, json_option, pairs, plain, say, table
from fedmem.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from fedmem.privacy.statement import LifetimeSpent
    from fedmem.sdk.egress import SentMessage

SCHEMA = "client.egress"
COLUMNS = ("when", "message", "round", "bytes", "epsilon", "delta", "run", "digest")


@click.command(epilog="Example: fedmem client egress --subject ana --since 2026-11-01")
@vault_options
@click.option("--since", metavar="DATE", help="First date to show: 2026-11-22, or a time as 2026-11-22T06:00+01:00.")
@click.option("--policy", default="default", show_default=True, help="The policy that sets the device's budget.")
@click.option("--export", type=click.Path(dir_okay=False, path_type=Path), help="Also write it to a new file, as JSON.")
@json_option
def egress(
    subject: str, vault_path: str | None, secret: Secret, since: str | None, policy: str, export: Path | None
) -> None:
    """List the messages that left this device: time, type, round, bytes, digest, and ε of the round against readers.

    ε of a message is that of one round, for the whole device. Lifetime ε composes all rounds of all federations that
    this device answered; the policy sets its budget. Against the coordinator both are unbounded. The exit code is 6 if
    the ledger was edited or shortened.
    """
    from fedmem.policy.policy import Policy
    from fedmem.sdk.egress import Egress

    first, limits = parse_since(since), Policy.load(policy).federation
    with open_vault(subject, vault_path, secret, write=False) as vault:
        ledger = Egress(vault)
        lines, complete = [message_data(message) for message in ledger.since(first)], ledger.complete()
        account = ledger.lifetime(limits)
    nbytes = sum(line["bytes"] for line in lines)
    figures = {"complete": complete, "messages": len(lines), "bytes": nbytes}
    data = {**figures, "epsilon": account_data(account), "entries": lines}
    if export is not None:
        export_envelope(export, data)
    if not complete:
        say(
            "This vault was restored from a backup: messages that left after that backup are not in the list. So ε"
            " of all federations is not bounded."
        )
    if not lines:
        say("No message left this device." if since is None else "No message left this device since then.")
    emit(SCHEMA, data, lambda out: print_egress(out, lines, account))


def print_egress(out: "Console", lines: list[dict[str, Any]], account: "LifetimeSpent") -> None:
    """Print the messages and the account of the device.

    Args:
        out: The console.
        lines: The messages, as `message_data` returned them.
        account: The account of the device.
    """
    from fedmem.privacy.report import lifetime_rows

    table(out, COLUMNS, [[line[name] for name in COLUMNS] for line in lines])
    out.print("")
    pairs(out, lifetime_rows(account))


def account_data(account: "LifetimeSpent") -> dict[str, Any]:
    """Return the account of the device as data of the JSON envelope. An infinite ε is null.

    Args:
        account: The account of the device.
    """
    fields = asdict(account)
    return {"lifetime": fields.pop("epsilon"), **fields}


def message_data(message: "SentMessage") -> dict[str, Any]:
    """Return one message as data of the JSON envelope.

    Args:
        message: The message.
    """
    fields = asdict(message)
    return {"when": message.when.isoformat(timespec="seconds"), "bytes": fields.pop("nbytes")} | {
        name: value for name, value in fields.items() if name != "when"
    }


def export_envelope(file: Path, data: dict[str, Any]) -> None:
    """Write the envelope to a new file.

    Args:
        file: Path of the new file.
        data: Data of the JSON envelope.

    Raises:
        UsageError: The file exists or cannot be written.
    """
    from fedmem.cli.receipt import write_new

    envelope = {"schema": f"fedmem.{SCHEMA}/1", "data": plain(data)}
    write_new(file, json.dumps(envelope, ensure_ascii=False, allow_nan=False, indent=2) + "\n")
    say(f"Written to {file}.")


def parse_since(text: str | None) -> datetime | None:
    """Return the time that `--since` names.

    Args:
        text: An ISO date or time, which is local time without a zone. None is no time.

    Raises:
        UsageError: The text is neither.
    """
    if text is None:
        return None
    try:
        first = datetime.fromisoformat(text).astimezone()
        first.timestamp()
    except (ValueError, OverflowError):
        raise UsageError("Give a date, as 2026-11-22, or a time, as 2026-11-22T06:00+01:00.") from None
    return first
