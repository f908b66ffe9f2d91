"""`fedmem privacy`: what was spent, computed from the ledger, and whether the ledger holds.

Invariants
- A figure is shown only of a ledger that verifies; one that is missing, edited or shortened ends with 6.
- A report on disk is readable by this user only: it names topics.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.audit import audit
from fedmem.cli.options import Secret, opened, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from fedmem.privacy.statement import Spent, Statement


@click.group()
def privacy() -> None:
    """Privacy spent by a vault, and how far our training can be attacked."""


privacy.add_command(audit)


@privacy.command(epilog="Example: fedmem privacy budget --subject ana --json")
@vault_options
@json_option
def budget(subject: str, vault: str | None, secret: Secret) -> None:
    """Show ε of the subject and of every training run, erased and failed ones included."""
    from fedmem.sdk.views import Privacy

    with opened(subject, vault, secret, write=False) as found:
        spent = Privacy(found).budget()
    rows = [(run.block, run.topic, run.epsilon) for run in spent.runs]
    rows.append(("all", f"bound for every record at δ = {spent.delta:g}, {spent.accountant.upper()}", spent.epsilon))
    emit("privacy.budget", asdict(spent), lambda out: table(out, ("block", "topic", "ε"), rows))


@privacy.command(epilog="Example: fedmem privacy report --subject ana --html privacy.html")
@vault_options
@click.option("--policy", default="default", show_default=True, help="The policy whose budgets hold: a name or a file.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report as a page, here.")
@json_option
def report(subject: str, vault: str | None, secret: Secret, policy: str, html: Path | None) -> None:
    """Say what is guaranteed, what was spent of each topic's budget, and what no figure covers.

    The page names topics and is a copy outside the vault, which an erasure does not reach; a file that is there already
    is not overwritten.
    """
    from fedmem.policy.policy import Policy
    from fedmem.privacy.report import page
    from fedmem.sdk.views import Privacy

    budgets = Policy.load(policy).topics
    with opened(subject, vault, secret, write=False) as found:
        said = Privacy(found).report(budgets)
    if html is not None:
        write_private(html, page(said))
    emit("privacy.report", asdict(said) | {"html": html}, lambda out: told(out, said, html))


@privacy.group()
def ledger() -> None:
    """The ledger from which every figure is computed."""


@ledger.command(epilog="Example: fedmem privacy ledger verify --subject ana")
@vault_options
@json_option
def verify(subject: str, vault: str | None, secret: Secret) -> None:
    """Check the ledger: its chain, its head in the keystore, and a charge for every run and block. Else ends with 6."""
    from fedmem.sdk.views import Privacy

    with opened(subject, vault, secret, write=False) as found:
        checked = asdict(Privacy(found).verify())
    names = {"head": "digest of the last event", "noted": "events that the keystore vouches for"}
    emit("privacy.ledger.verify", checked,
         lambda out: pairs(out, [(names.get(name, name), value) for name, value in checked.items()]))  # fmt: skip
    if checked["events"] and checked["noted"] is None:
        say("The keystore notes no head of this ledger: a cut at its end shows only in the runs that the vault holds.")


def told(out: "Console", said: "Statement", html: Path | None) -> None:
    """Print a statement."""
    from fedmem.privacy.report import down, up

    exact = None if said.epsilon_pld is None else up(said.epsilon_pld)
    pairs(out, [("unit", said.unit), ("neighbours", said.adjacency), ("δ", f"{said.delta:g}"),
                ("ε by PLD", exact), ("ε by RDP", up(said.epsilon_rdp))])  # fmt: skip
    topics = [(one.topic, one.budget, up(one.epsilon), down(one.left)) for one in said.topics]
    heading(out, "Topics", ("topic", "budget ε", "spent ε", "left"), topics)
    columns = ("block", "topic", "release", "rate", "σ", "steps", "ε alone", "state")
    heading(out, "Runs", columns, [run_row(run) for run in said.runs])
    out.print("")
    pairs(out, [*(("public", line) for line in said.public), *(("not covered", line) for line in said.not_covered)])
    pairs(out, [("ledger", f"{said.events} events, the last with digest {said.head or '–'}"), ("page", html)])


def heading(out: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a titled table, or nothing where it has no row."""
    if rows:
        out.print(f"\n{title}")
        table(out, columns, rows)


def run_row(run: "Spent") -> tuple[Any, ...]:
    """One run as a table holds it."""
    from fedmem.privacy.report import up

    how = run.release[:12], run.sampling_rate, run.noise_multiplier, run.steps
    return run.block, run.topic, *how, up(run.epsilon), run.state


def write_private(file: Path, text: str) -> None:
    """Write a new file that only this user reads. Raises UsageError where it is there, or has no place."""
    from fedmem.cli.receipt import write_new

    before = os.umask(0o077)
    try:
        write_new(file, text)
    finally:
        os.umask(before)
