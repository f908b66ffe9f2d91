"""`fedmem erase`: how the erasures of a vault stand, and finishing one that could not end."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from fedmem.cli.options import Secret, opened, vault_options
from fedmem.cli.output import emit, json_option, say, table


@click.group()
def erase() -> None:
    """Erasures of a vault."""


@erase.command(epilog="Example: fedmem erase status --subject ana")
@vault_options
@json_option
def status(subject: str, vault: str | None, secret: Secret) -> None:
    """List the erasures of a vault with their states and receipts."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=False) as found:
        known = [asdict(one) for one in Erase(found).status()]
    for one in known:
        one["created"] = datetime.fromtimestamp(one["created"], UTC).isoformat(timespec="seconds")
    told("erase.status", known, ("id", "state", "created", "receipt_path"), "No erasures yet.")


@erase.command(epilog="Example: fedmem erase resume --subject ana")
@vault_options
@json_option
def resume(subject: str, vault: str | None, secret: Secret) -> None:
    """Finish the erasures that were cut or could not end; one that still cannot ends with 5."""
    from dataclasses import asdict

    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=True) as found:
        done = [asdict(one) for one in Erase(found).resume()]
    told("erase.resume", done, ("id", "state", "receipt_path"), "Nothing is unfinished.")


def told(schema: str, erasures: list[dict[str, Any]], columns: Sequence[str], none: str) -> None:
    """Write a list of erasures, or say that there is none."""
    if not erasures:
        say(none)
    rows: list[list[Any]] = [[one[name] for name in columns] for one in erasures]
    data: Mapping[str, Any] = {"erasures": erasures}
    emit(schema, data, lambda out: table(out, columns, rows))
