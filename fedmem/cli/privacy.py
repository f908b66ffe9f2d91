"""`fedmem privacy`: what was spent, computed from the ledger."""

import click

from fedmem.cli.options import Secret, opened, vault_options
from fedmem.cli.output import emit, json_option, table


@click.group()
def privacy() -> None:
    """Privacy spent by a vault."""


@privacy.command(epilog="Example: fedmem privacy budget --subject ana --json")
@vault_options
@json_option
def budget(subject: str, vault: str | None, secret: Secret) -> None:
    """Show ε of the subject and of every training run, erased and failed ones included."""
    from dataclasses import asdict

    from fedmem.sdk.views import Privacy

    with opened(subject, vault, secret, write=False) as found:
        spent = Privacy(found).budget()
    rows = [(run.block, run.topic, run.epsilon) for run in spent.runs]
    rows.append(("all", f"bound for every record at δ = {spent.delta:g}, {spent.accountant.upper()}", spent.epsilon))
    emit("privacy.budget", asdict(spent), lambda out: table(out, ("block", "topic", "ε"), rows))
