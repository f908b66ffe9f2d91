"""`fedmem keys`: show and change the keys of a vault, and manage its recovery kits."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.options import (
    Secret,
    code_writer,
    confirm,
    find_vault,
    open_vault,
    secret_options,
    vault_options,
)
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from rich.console import Console

KIT = click.option("--kit", type=click.Path(path_type=Path), required=True, help="File of the kit.")
COLUMNS = ("id", "kind", "state", "created", "place", "reachable")


@click.group()
def keys() -> None:
    """Show and change the keys of a vault, and manage its recovery kits."""


@keys.command(epilog="Example: fedmem keys status --subject ana")
@vault_options
@json_option
def status(subject: str, vault_path: str | None, secret: Secret) -> None:
    """Show the keystore, the numbers of the key table, and the kits and backups that can open the vault."""
    from dataclasses import asdict

    from fedmem.sdk.keys import status as key_status

    with open_vault(subject, vault_path, secret, write=False) as vault:
        data = asdict(key_status(vault))
    emit("keys.status", data, lambda out: print_status(out, data))


@keys.command(epilog="Example: fedmem keys rotate --subject ana --yes")
@vault_options
@click.option("--dry-run", is_flag=True, help="Show what would be retired, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed without a terminal.")
@json_option
def rotate(subject: str, vault_path: str | None, secret: Secret, dry_run: bool, yes: bool) -> None:
    """Make a new epoch key without an erasure. Recovery kits are retired. Backups can still be opened."""
    from fedmem.sdk.keys import copies_of
    from fedmem.vault.crypto.rekey import rotate as rotate_key

    with open_vault(subject, vault_path, secret, write=not dry_run) as vault:
        kits = [copy.id for copy in copies_of(vault, "kit") if copy.state == "valid"]
        if not dry_run:
            confirm(f"Make a new epoch key and retire {len(kits)} recovery kit(s)?", yes)
            rotate_key(vault.core)
        data = {"epoch": vault.core.table.epoch, "retired": kits, "done": not dry_run}
    emit("keys.rotate", data, lambda out: pairs(out, data.items()))


@keys.command("change-passphrase", epilog="Example: fedmem keys change-passphrase --subject ana")
@vault_options
@secret_options("new-passphrase", "the new passphrase", into="new", again=True)
@json_option
def change_passphrase(subject: str, vault_path: str | None, secret: Secret, new: Secret) -> None:
    """Replace the passphrase of the vault. The old one no longer opens it. Kits and backups can still be opened."""
    from fedmem.vault.crypto.rekey import change_passphrase as change

    with open_vault(subject, vault_path, secret, write=True) as vault:
        change(vault.core, new)
        data = {"epoch": vault.core.table.epoch, "done": True}
    emit("keys.change-passphrase", data, lambda out: pairs(out, data.items()))


@keys.group()
def recovery() -> None:
    """Create, test and use recovery kits: a file and a code that together open a vault when its keystore is lost."""


@recovery.command(epilog="Example: fedmem keys recovery create --subject ana --kit /media/stick/ana.kit")
@vault_options
@KIT
@click.option("--code-fd", type=int, help="Write the code to an open descriptor instead of the terminal.")
@json_option
def create(subject: str, vault_path: str | None, secret: Secret, kit: Path, code_fd: int | None) -> None:
    """Write a new kit to --kit and show its code once. Keep kit and code apart: together they open the vault."""
    from fedmem.vault.backup.recovery import create as create_kit

    show = code_writer(code_fd)
    with open_vault(subject, vault_path, secret, write=True) as vault:
        kit_id, _ = create_kit(vault, kit, show)
    say("Write the code down now, and keep it apart from the kit. It is shown once and stored nowhere.")
    data = {"id": kit_id, "kit": kit.absolute()}
    emit("keys.recovery.create", data, lambda out: pairs(out, data.items()), "`fedmem keys status` shows the kit.")


@recovery.command(epilog="Example: fedmem keys recovery test --subject ana --kit ana.kit")
@vault_options
@KIT
@secret_options("code", "the recovery code", into="code")
@json_option
def test(subject: str, vault_path: str | None, secret: Secret, kit: Path, code: Secret) -> None:
    """Check that kit and code open the vault. The exit code is 6 for a retired kit and 8 for a wrong code."""
    from fedmem.storage.files import Files
    from fedmem.vault.backup.recovery import check as check_kit

    opened_kit = check_kit(find_vault(subject, vault_path), Files().read(kit), code())
    data = {"id": opened_kit.id, "created": opened_kit.created, "opens": True}
    emit("keys.recovery.test", data, lambda out: pairs(out, data.items()))


@recovery.command(epilog="Example: fedmem keys recovery restore --subject ana --kit ana.kit --keystore keyring")
@vault_options
@KIT
@secret_options("code", "the recovery code", into="code")
@click.option(
    "--keystore",
    type=click.Choice(["keyring", "passphrase", "keyfile"]),
    required=True,
    help="The new keystore. With `passphrase`, the passphrase that you give is the new one.",
)
@json_option
def restore(subject: str, vault_path: str | None, secret: Secret, kit: Path, code: Secret, keystore: str) -> None:
    """Restore the keys of a vault from a kit and its code to a keystore of your choice."""
    from fedmem.storage.files import Files
    from fedmem.vault.backup.recovery import restore as restore_keys

    root = find_vault(subject, vault_path)
    opened_kit = restore_keys(root, Files().read(kit), code(), subject=subject, keystore=keystore, ask=secret)
    data = {"id": opened_kit.id, "vault": opened_kit.vault, "keystore": keystore}
    emit("keys.recovery.restore", data, lambda out: pairs(out, data.items()), "The keys are restored.")


def print_status(out: "Console", data: Mapping[str, Any]) -> None:
    """Print the status of the keys.

    Args:
        out: The console.
        data: Data of the JSON envelope.
    """
    pairs(out, [(name, value) for name, value in data.items() if name != "copies"])
    table(out, COLUMNS, [[copy[name] for name in COLUMNS] for copy in data["copies"]])
