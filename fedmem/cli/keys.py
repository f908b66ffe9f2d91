"""`fedmem keys`: where a vault's keys lie, changing them, and recovery kits."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.options import (
    Secret,
    confirm,
    find_vault,
    opened,
    secret_options,
    shower,
    vault_options,
)
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from rich.console import Console

KIT = click.option("--kit", type=click.Path(path_type=Path), required=True, help="The kit's file.")
COLUMNS = ("id", "kind", "state", "created", "place", "reachable")


@click.group()
def keys() -> None:
    """Keys of a vault, and recovery kits."""


@keys.command(epilog="Example: fedmem keys status --subject ana")
@vault_options
@json_option
def status(subject: str, vault: str | None, secret: Secret) -> None:
    """Show the keystore, the numbers of the key table, and which kits and backups still open the vault."""
    from dataclasses import asdict

    from fedmem.sdk.keys import status as look

    with opened(subject, vault, secret, write=False) as found:
        data = asdict(look(found))
    emit("keys.status", data, lambda out: described(out, data))


@keys.command(epilog="Example: fedmem keys rotate --subject ana --yes")
@vault_options
@click.option("--dry-run", is_flag=True, help="Show what would be retired, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@json_option
def rotate(subject: str, vault: str | None, secret: Secret, dry_run: bool, yes: bool) -> None:
    """Make a new epoch key without an erasure. Recovery kits are retired; backups go on opening."""
    from fedmem.sdk.keys import copies_of
    from fedmem.vault.crypto.rekey import rotate as run

    with opened(subject, vault, secret, write=not dry_run) as found:
        kits = [copy.id for copy in copies_of(found, "kit") if copy.state == "valid"]
        if not dry_run:
            confirm(f"Make a new epoch key and retire {len(kits)} recovery kit(s)?", yes)
            run(found.core)
        data = {"epoch": found.core.table.epoch, "retired": kits, "done": not dry_run}
    emit("keys.rotate", data, lambda out: pairs(out, data.items()))


@keys.command("change-passphrase", epilog="Example: fedmem keys change-passphrase --subject ana")
@vault_options
@secret_options("new-passphrase", "the new passphrase", into="new", again=True)
@json_option
def change_passphrase(subject: str, vault: str | None, secret: Secret, new: Secret) -> None:
    """Have the vault open with a new passphrase, and with that one only. Kits and backups go on opening."""
    from fedmem.vault.crypto.rekey import change_passphrase as run

    with opened(subject, vault, secret, write=True) as found:
        run(found.core, new)
        data = {"epoch": found.core.table.epoch, "done": True}
    emit("keys.change-passphrase", data, lambda out: pairs(out, data.items()))


@keys.group()
def recovery() -> None:
    """Recovery kits: a file and a code that open a vault whose keystore is lost."""


@recovery.command(epilog="Example: fedmem keys recovery create --subject ana --kit /media/stick/ana.kit")
@vault_options
@KIT
@click.option("--code-fd", type=int, help="Write the code to an open descriptor instead of the terminal.")
@json_option
def create(subject: str, vault: str | None, secret: Secret, kit: Path, code_fd: int | None) -> None:
    """Write a new kit to FILE and show its code once. Keep the two apart: together they open the vault."""
    from fedmem.vault.backup.recovery import create as make

    show = shower(code_fd)
    with opened(subject, vault, secret, write=True) as found:
        made, _ = make(found, kit, show)
    say("Write the code down now, and keep it apart from the kit. It is shown once and stored nowhere.")
    data = {"id": made, "kit": kit.absolute()}
    emit("keys.recovery.create", data, lambda out: pairs(out, data.items()), "`fedmem keys status` shows the kit.")


@recovery.command(epilog="Example: fedmem keys recovery test --subject ana --kit ana.kit")
@vault_options
@KIT
@secret_options("code", "the recovery code", into="code")
@json_option
def test(subject: str, vault: str | None, secret: Secret, kit: Path, code: Secret) -> None:
    """Do kit and code open the vault as it is now? One retired by an erasure ends with 6, a wrong code with 8."""
    from fedmem.storage.files import Files
    from fedmem.vault.backup.recovery import check

    found = check(find_vault(subject, vault), Files().read(kit), code())
    data = {"id": found.id, "created": found.created, "opens": True}
    emit("keys.recovery.test", data, lambda out: pairs(out, data.items()))


@recovery.command(epilog="Example: fedmem keys recovery restore --subject ana --kit ana.kit --keystore keyring")
@vault_options
@KIT
@secret_options("code", "the recovery code", into="code")
@click.option(
    "--keystore",
    type=click.Choice(["keyring", "passphrase", "keyfile"]),
    required=True,
    help="Where the keys go; with `passphrase`, the passphrase given is the new one.",
)
@json_option
def restore(subject: str, vault: str | None, secret: Secret, kit: Path, code: Secret, keystore: str) -> None:
    """Put the keys of a vault back, out of a kit and its code, into a keystore of your choice."""
    from fedmem.storage.files import Files
    from fedmem.vault.backup.recovery import restore as run

    root = find_vault(subject, vault)
    found = run(root, Files().read(kit), code(), subject=subject, keystore=keystore, ask=secret)
    data = {"id": found.id, "vault": found.vault, "keystore": keystore}
    emit("keys.recovery.restore", data, lambda out: pairs(out, data.items()), "The keys are restored.")


def described(out: "Console", data: Mapping[str, Any]) -> None:
    """Print the status of the keys."""
    pairs(out, [(name, value) for name, value in data.items() if name != "copies"])
    table(out, COLUMNS, [[copy[name] for name in COLUMNS] for copy in data["copies"]])
