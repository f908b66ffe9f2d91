"""`fedmem backup`: encrypted copies of a vault. The keystore or a recovery kit opens them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.options import Secret, confirm, open_vault, secret_options, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from fedmem.vault.backup.recovery_kit import Kit

FOLDER = click.Path(path_type=Path)
COLUMNS = ("id", "state", "created", "place", "reachable")


@click.group()
def backup() -> None:
    """Create, list, verify and restore backups of a vault."""


@backup.command(epilog="Example: fedmem backup create --subject ana --to /media/stick/ana")
@vault_options
@click.option("--to", "place", type=FOLDER, required=True, help="The backup's folder: new or empty.")
@json_option
def create(subject: str, vault_path: str | None, secret: Secret, place: Path) -> None:
    """Write a backup to a folder. It holds ciphertext only: keep the keystore too, or a recovery kit."""
    from fedmem.vault.backup.backup import create as create_backup

    with open_vault(subject, vault_path, secret, write=True) as vault:
        manifest = create_backup(vault, place)
    data = {
        "id": manifest.id, "vault": manifest.vault, "generation": manifest.generation, "place": place.absolute()
    }  # fmt: skip
    emit("backup.create", data, lambda out: pairs(out, data.items()))


@backup.command("list", epilog="Example: fedmem backup list --subject ana")
@vault_options
@json_option
def list_(subject: str, vault_path: str | None, secret: Secret) -> None:
    """List the registered backups of the vault. An erasure retires the backups that were made before it."""
    from dataclasses import asdict

    from fedmem.sdk.keys import copies_of

    with open_vault(subject, vault_path, secret, write=False) as vault:
        backups = [asdict(copy) for copy in copies_of(vault, "backup")]
    if not backups:
        say("No backups yet.")
    rows = [[copy[name] for name in COLUMNS] for copy in backups]
    emit("backup.list", {"backups": backups}, lambda out: table(out, COLUMNS, rows))


@backup.command(epilog="Example: fedmem backup verify /media/stick/ana")
@click.argument("place", type=FOLDER)
@secret_options("passphrase", "the passphrase")
@click.option("--kit", type=FOLDER, help="Check that this recovery kit opens the backup.")
@secret_options("code", "the recovery code", into="code")
@json_option
def verify(place: Path, secret: Secret, kit: Path | None, code: Secret) -> None:
    """Check every file of the backup in PLACE, and check that the keystore or a kit opens it."""
    from fedmem.vault.backup.backup import verify as verify_backup

    manifest = verify_backup(place, ask=secret, kit=opened_kit(kit, code))
    data = {"id": manifest.id, "vault": manifest.vault, "files": len(manifest.files) + 1, "opens": True}
    emit("backup.verify", data, lambda out: pairs(out, data.items()))


@backup.command(epilog="Example: fedmem backup restore /media/stick/ana --subject ana --dry-run")
@click.argument("place", type=FOLDER)
@vault_options
@click.option("--receipts", type=FOLDER, help="Folder of the newest receipts, if something was erased since.")
@click.option(
    "--key", "public_keys", type=FOLDER, multiple=True, help="With --receipts: a later public key of the device."
)
@click.option("--nothing-erased-since", is_flag=True, help="Declare that nothing was, if the keystore is lost.")
@click.option("--kit", type=FOLDER, help="A recovery kit, if the keystore is lost.")
@secret_options("code", "the recovery code", into="code")
@click.option("--keystore", type=click.Choice(["keyring", "passphrase", "keyfile"]), help="With --kit: for the keys.")
@click.option("--dry-run", is_flag=True, help="Check that the backup opens, and restore nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@json_option
def restore(
    place: Path, subject: str, vault_path: str | None, secret: Secret, dry_run: bool, yes: bool, **options: Any
) -> None:
    """Restore a vault from the backup in PLACE to the subject's own folder, or to --vault. The folder is new or empty.

    Content that was erased after the backup is erased again before the vault opens. Other copies of the vault can no
    longer be opened.
    """
    from dataclasses import asdict

    from fedmem.errors import UsageError
    from fedmem.sdk import keys
    from fedmem.sdk.places import vault_root
    from fedmem.storage.files import Files
    from fedmem.vault.backup.backup import verify as verify_backup
    from fedmem.vault.backup.restoring import LaterErasures
    from fedmem.vault.backup.restoring import restore as restore_backup

    receipts, kit = options["receipts"], opened_kit(options["kit"], options["code"])
    if (kit is None) != (options["keystore"] is None):
        raise UsageError("Give --kit and --keystore together: the keys of a kit go into a keystore of your choice.")
    if receipts is not None and options["nothing_erased_since"]:
        raise UsageError("Give --receipts or --nothing-erased-since, not both.")
    root = Path(vault_path) if vault_path else vault_root(subject)
    if dry_run:
        manifest = verify_backup(place, ask=secret, kit=kit)
        data: dict[str, Any] = {"vault": manifest.vault, "place": root.absolute(), "done": False}
        emit("backup.restore", data, lambda out: pairs(out, data.items()))
        return
    public_keys = [Files().read(file) for file in options["public_keys"]]
    later_erasures = keys.later_erasures(place, receipts, public_keys) if receipts is not None else None
    if options["nothing_erased_since"]:
        later_erasures = LaterErasures(generation=0)
    confirm(f"Restore into {root}? Other copies of this vault will not open any more.", yes)
    root.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    backend = options["keystore"] or "keyfile"
    result = restore_backup(
        place, root, subject=subject, ask=secret, kit=kit, backend=backend, later_erasures=later_erasures
    )
    if result.unbounded:
        say("The ledger may lack spends made after the backup. ε is now infinite, and training is refused.")
    restored = asdict(result) | {"place": root.absolute(), "done": True}
    emit("backup.restore", restored, lambda out: pairs(out, restored.items()), "The vault is restored.")


def opened_kit(file: Path | None, code: Secret) -> "Kit | None":
    """Open a recovery kit. Return None if no file is given.

    Args:
        file: File of the kit, or None.
        code: Returns the recovery code.

    Raises:
        KeystoreError: The code does not open the kit.
    """
    if file is None:
        return None
    from fedmem.storage.files import Files
    from fedmem.vault.backup.recovery_kit import open_kit

    return open_kit(Files().read(file), code())
