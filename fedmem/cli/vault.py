"""`fedmem vault`: check that the parts of a vault fit together, save the readable parts of a damaged vault, and remove
an empty one.

Invariants
- `check` changes nothing. `repair` changes nothing in the damaged vault. `remove` refuses a vault that holds anything.
- Output contains parts, counts and random ids, never the text of a record.
"""

from pathlib import Path

import click

from fedmem.cli.block import counts_text
from fedmem.cli.options import Secret, confirm, find_vault, vault_options
from fedmem.cli.output import changing, emit, json_option, pairs, say, table


@click.group()
def vault() -> None:
    """Check a vault, save the readable parts of a damaged one, and remove an empty one."""


@vault.command(epilog="Example: fedmem vault check --subject ana")
@vault_options
@json_option
def check(subject: str, vault_path: str | None, secret: Secret) -> None:
    """Check that all parts of the vault fit together: keys, table, database, log, ledger, blocks, receipts.

    Each fault is listed with what to do. The exit code is 6 if there is a fault. Nothing is changed.
    """
    from dataclasses import asdict

    from fedmem.errors import VerificationFailed
    from fedmem.vault.backup.check import check as check_vault

    faults = check_vault(find_vault(subject, vault_path), subject=subject, ask=secret)
    data = {"fits": not faults, "faults": [asdict(fault) for fault in faults]}
    rows = [(fault.part, fault.message) for fault in faults] or [("all parts", "fit together")]
    emit("vault.check", data, lambda out: table(out, ("part", "state"), rows))
    if faults:
        raise VerificationFailed(f"{len(faults)} part(s) of this vault do not fit. Nothing was changed.")


@vault.command(epilog="Example: fedmem vault repair --subject ana --to saved-vault")
@vault_options
@click.option(
    "--to", "place", type=click.Path(path_type=Path), required=True, help="Folder of the new vault: new or empty."
)
@json_option
def repair(subject: str, vault_path: str | None, secret: Secret, place: Path) -> None:
    """Save everything that can still be opened to a new vault with new keys. The damaged vault is not changed.

    Open the new vault with --vault. If the privacy ledger is incomplete, ε of the new vault is infinite, and training
    is refused.
    """
    from dataclasses import asdict

    from fedmem.vault.backup.repair import repair as repair_vault

    changing()
    result = repair_vault(find_vault(subject, vault_path), place.absolute(), subject=subject, ask=secret)
    data = asdict(result) | {"place": place.absolute()}
    rows = [
        ("vault", result.vault),
        ("saved", counts_text(result.saved)),
        ("lost", counts_text(result.lost) or "nothing"),
        ("place", place.absolute()),
    ]
    emit("vault.repair", data, lambda out: pairs(out, rows))
    if result.is_unbounded:
        say("The ledger may lack spends. ε of the new vault is infinite, and training is refused there.")


@vault.command(epilog="Example: fedmem vault remove --subject ana --evidence evidence --yes")
@vault_options
@click.option(
    "--evidence",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the receipts, the public key and the lists of erased items: new or empty.",
)
@click.option("--yes", is_flag=True, help="Do not ask. Needed without a terminal.")
@json_option
def remove(subject: str, vault_path: str | None, secret: Secret, evidence: Path, yes: bool) -> None:
    """Remove the vault's folder and its keys, after an erasure of the whole subject.

    An erasure leaves the folder, its name, the subject's name, the privacy ledger and the receipts. This removes them.
    A vault that still holds anything is refused with exit code 4.
    """
    from dataclasses import asdict

    from fedmem.sdk.removal import remove as remove_vault

    root = find_vault(subject, vault_path)
    confirm(f"Remove the vault at {root}, its privacy ledger and its keys for good?", yes)
    changing()
    removed = remove_vault(root, evidence.absolute(), subject=subject, ask=secret)
    data = asdict(removed) | {"place": evidence.absolute()}
    rows = [("removed", root), ("evidence", evidence.absolute()), ("files", len(removed.evidence))]
    emit("vault.remove", data, lambda out: pairs(out, rows), "The vault is removed.")
