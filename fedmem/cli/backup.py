"""`fedmem backup`: copies of a vault that the keystore, or a recovery kit, opens."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.options import Secret, confirm, opened, secret_options, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from fedmem.vault.backup.recovery_kit import Kit

FOLDER = click.Path(path_type=Path)
COLUMNS = ("id", "state", "created", "place", "reachable")


@click.group()
def backup() -> None:
    """Backups of a vault."""


@backup.command(epilog="Example: fedmem backup create --subject ana --to /media/stick/ana")
@vault_options
@click.option("--to", "place", type=FOLDER, required=True, help="The backup's folder: new or empty.")
@json_option
def create(subject: str, vault: str | None, secret: Secret, place: Path) -> None:
    """Write a backup to a folder. It holds ciphertext only: keep the keystore too, or a recovery kit."""
    from fedmem.vault.backup.backup import create as make

    with opened(subject, vault, secret, write=True) as found:
        made = make(found, place)
    data = {"id": made.id, "vault": made.vault, "generation": made.generation, "place": place.absolute()}
    emit("backup.create", data, lambda out: pairs(out, data.items()))


@backup.command("list", epilog="Example: fedmem backup list --subject ana")
@vault_options
@json_option
def list_(subject: str, vault: str | None, secret: Secret) -> None:
    """List the backups that the vault knows of; an erasure retires those made before it."""
    from dataclasses import asdict

    from fedmem.sdk.keys import copies_of

    with opened(subject, vault, secret, write=False) as found:
        known = [asdict(copy) for copy in copies_of(found, "backup")]
    if not known:
        say("No backups yet.")
    rows = [[copy[name] for name in COLUMNS] for copy in known]
    emit("backup.list", {"backups": known}, lambda out: table(out, COLUMNS, rows))


@backup.command(epilog="Example: fedmem backup verify /media/stick/ana")
@click.argument("place", type=FOLDER)
@secret_options("passphrase", "the passphrase")
@click.option("--kit", type=FOLDER, help="A recovery kit, to see whether it opens the backup.")
@secret_options("code", "the recovery code", into="code")
@json_option
def verify(place: Path, secret: Secret, kit: Path | None, code: Secret) -> None:
    """Check every file of the backup in PLACE, and that the keystore, or a kit, opens it."""
    from fedmem.vault.backup.backup import verify as check

    found = check(place, ask=secret, kit=kit_of(kit, code))
    data = {"id": found.id, "vault": found.vault, "files": len(found.files) + 1, "opens": True}
    emit("backup.verify", data, lambda out: pairs(out, data.items()))


@backup.command(epilog="Example: fedmem backup restore /media/stick/ana --subject ana --dry-run")
@click.argument("place", type=FOLDER)
@vault_options
@click.option("--receipts", type=FOLDER, help="Folder of the newest receipts, where something was erased since.")
@click.option("--nothing-erased-since", is_flag=True, help="Say that nothing was, where the keystore is lost.")
@click.option("--kit", type=FOLDER, help="A recovery kit, where the keystore is lost.")
@secret_options("code", "the recovery code", into="code")
@click.option("--keystore", type=click.Choice(["keyring", "passphrase", "keyfile"]), help="With --kit: for the keys.")
@click.option("--dry-run", is_flag=True, help="Check that the backup opens, and restore nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@json_option
def restore(
    place: Path, subject: str, vault: str | None, secret: Secret, dry_run: bool, yes: bool, **given: Any
) -> None:
    """Make the vault again from the backup in PLACE, in the subject's own folder or in --vault, new or empty.

    What was erased after the backup is erased again before the vault opens. Other copies of the vault open no more.
    """
    from dataclasses import asdict

    from fedmem.errors import UsageError
    from fedmem.sdk.keys import newest as told
    from fedmem.sdk.places import vault_root
    from fedmem.vault.backup.backup import verify as check
    from fedmem.vault.backup.restoring import LaterErasures
    from fedmem.vault.backup.restoring import restore as run

    receipts, kit = given["receipts"], kit_of(given["kit"], given["code"])
    if (kit is None) != (given["keystore"] is None):
        raise UsageError("Give --kit and --keystore together: the keys of a kit go into a keystore of your choice.")
    if receipts is not None and given["nothing_erased_since"]:
        raise UsageError("Give --receipts, or say --nothing-erased-since; not both.")
    root = Path(vault) if vault else vault_root(subject)
    if dry_run:
        found = check(place, ask=secret, kit=kit)
        data: dict[str, Any] = {"vault": found.vault, "place": root.absolute(), "done": False}
        emit("backup.restore", data, lambda out: pairs(out, data.items()))
        return
    newest = told(place, receipts) if receipts is not None else None
    if given["nothing_erased_since"]:
        newest = LaterErasures(generation=0)
    confirm(f"Restore into {root}? Other copies of this vault will open no more.", yes)
    root.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    backend = given["keystore"] or "keyfile"
    result = run(place, root, subject=subject, ask=secret, kit=kit, backend=backend, newest=newest)
    if result.unbounded:
        say("The ledger may lack spends made after the backup: ε is infinite from now on, and nothing more is learned.")
    done = asdict(result) | {"place": root.absolute(), "done": True}
    emit("backup.restore", done, lambda out: pairs(out, done.items()), "The vault is restored.")


def kit_of(file: Path | None, code: Secret) -> "Kit | None":
    """The opened kit, where one is given."""
    if file is None:
        return None
    from fedmem.storage.files import Files
    from fedmem.vault.backup.recovery_kit import opened as open_kit

    return open_kit(Files().read(file), code())
