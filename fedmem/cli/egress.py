"""`fedmem client egress`: every message that left this device.

Invariants
- What is shown are public facts of messages: type, round, size, digest, ε. Never what a message says.
- A ledger that was edited or shortened shows nothing and ends with 6.
- `--export` writes a file that is not there yet, or nothing.
"""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.options import Secret, opened, vault_options
from fedmem.cli.output import emit, json_option, plain, say, table
from fedmem.errors import UsageError

if TYPE_CHECKING:
    from fedmem.sdk.egress import SentMessage

SCHEMA = "client.egress"
COLUMNS = ("when", "message", "round", "bytes", "epsilon", "delta", "run", "digest")


@click.command(epilog="Example: fedmem client egress --subject ana --since 2026-11-01")
@vault_options
@click.option("--since", metavar="DATE", help="Only from then on: 2026-11-22, or a time as 2026-11-22T06:00+01:00.")
@click.option("--export", type=click.Path(dir_okay=False, path_type=Path), help="Also write it to a new file, as JSON.")
@json_option
def egress(subject: str, vault: str | None, secret: Secret, since: str | None, export: Path | None) -> None:
    """Show what left this device: when, message, round, bytes, digest, and the ε of that round against readers.

    ε is that of one round, for the whole device; against the coordinator it is unbounded. Ends with 6 where the ledger
    was edited or shortened.
    """
    from fedmem.sdk.egress import Egress

    first = moment(since)
    with opened(subject, vault, secret, write=False) as found:
        ledger = Egress(found)
        lines, complete = [described(one) for one in ledger.since(first)], ledger.complete()
    data = {"complete": complete, "messages": len(lines), "bytes": sum(one["bytes"] for one in lines), "entries": lines}
    if export is not None:
        exported(export, data)
    if not complete:
        say("This vault was restored from a backup: messages that left after that backup are not in the list.")
    if not lines:
        say("Nothing left this device." if since is None else "Nothing left this device since then.")
    emit(SCHEMA, data, lambda out: table(out, COLUMNS, [[one[name] for name in COLUMNS] for one in lines]))


def described(sent: "SentMessage") -> dict[str, Any]:
    """One message as the envelope holds it."""
    named = asdict(sent)
    return {"when": sent.when.isoformat(timespec="seconds"), "bytes": named.pop("nbytes")} | {
        name: value for name, value in named.items() if name != "when"
    }


def exported(file: Path, data: dict[str, Any]) -> None:
    """Write the envelope to a new file."""
    from fedmem.cli.receipt import write_new

    envelope = {"schema": f"fedmem.{SCHEMA}/1", "data": plain(data)}
    write_new(file, json.dumps(envelope, ensure_ascii=False, allow_nan=False, indent=2) + "\n")
    say(f"Written to {file}.")


def moment(given: str | None) -> datetime | None:
    """The time that `--since` means; without a zone as the clock on the wall shows it. Raises UsageError."""
    if given is None:
        return None
    try:
        found = datetime.fromisoformat(given).astimezone()
        found.timestamp()
    except (ValueError, OverflowError):
        raise UsageError("A date is as 2026-11-22, or a time as 2026-11-22T06:00+01:00.") from None
    return found
