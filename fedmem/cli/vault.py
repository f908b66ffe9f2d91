"""`fedmem vault`: check that the parts of a vault fit together, and save what opens of one that does not.

Invariants
- `check` changes nothing; `repair` changes nothing of the damaged vault.
- Output names parts, counts and random ids; never a word of the text.
"""

from pathlib import Path

import click

from fedmem.cli.options import Secret, find_vault, vault_options
from fedmem.cli.output import changing, emit, json_option, pairs, say, table


@click.group()
def vault() -> None:
    """Check a vault, and save what opens of a damaged one."""


@vault.command(epilog="Example: fedmem vault check --subject ana")
@vault_options
@json_option
def check(subject: str, vault: str | None, secret: Secret) -> None:
    """Check every part of the vault against the others: keys, table, database, log, ledger, blocks, receipts.

    Ends with 6 where something does not fit, and says what and what to do. Nothing is changed.
    """
    from dataclasses import asdict

    from fedmem.errors import VerificationFailed
    from fedmem.vault.backup.check import check as run

    faults = run(find_vault(subject, vault), subject=subject, ask=secret)
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
def repair(subject: str, vault: str | None, secret: Secret, place: Path) -> None:
    """Save what still opens into a new vault with keys of its own. The damaged vault stays as it is.

    Open the new one with --vault. Where the privacy ledger is not whole, ε is infinite there: nothing more is learned.
    """
    from dataclasses import asdict

    from fedmem.vault.backup.repair import repair as run

    changing()
    result = run(find_vault(subject, vault), place.absolute(), subject=subject, ask=secret)
    data = asdict(result) | {"place": place.absolute()}
    emit("vault.repair", data, lambda out: pairs(out, data.items()))
    if result.is_unbounded:
        say("The ledger may lack spends: ε is infinite in the new vault, and nothing more is learned there.")
