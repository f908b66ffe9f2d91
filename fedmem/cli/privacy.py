"""`fedmem privacy`: show the privacy spent, computed from the ledger, and verify the ledger.

Invariants
- A figure is shown only if the ledger verifies. A ledger that is missing, edited or shortened ends with 6.
- A report on disk is readable by this user only, because it names topics.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.audit import audit
from fedmem.cli.options import Secret, open_vault, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from fedmem.privacy.statement import Spent, Statement


@click.group()
def privacy() -> None:
    """Show the privacy spent by a vault, and attack private training."""


privacy.add_command(audit)


@privacy.command(epilog="Example: fedmem privacy budget --subject ana --json")
@vault_options
@json_option
def budget(subject: str, vault_path: str | None, secret: Secret) -> None:
    """Show ε of the subject and of every training run, including erased and failed runs.

    A text that was erased and added again is a new record. For its author the second bound holds: all trainings of a
    topic composed.
    """
    from fedmem.sdk.privacy import Privacy

    with open_vault(subject, vault_path, secret, write=False) as vault:
        spent = Privacy(vault).budget()
    rows = [(run.block, run.topic, run.epsilon) for run in spent.runs]
    terms = f"at δ = {spent.delta:g}, {spent.accountant.upper()}"
    rows.append(("all", f"bound for every record {terms}", spent.epsilon))
    rows.append(("all", f"bound for a text that was erased and added again {terms}", spent.epsilon_readded))
    emit("privacy.budget", asdict(spent), lambda out: table(out, ("block", "topic", "ε"), rows))


@privacy.command(epilog="Example: fedmem privacy report --subject ana --html privacy.html")
@vault_options
@click.option("--policy", default="default", show_default=True, help="The policy that sets budgets: a name or a file.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report to this new page.")
@json_option
def report(subject: str, vault_path: str | None, secret: Secret, policy: str, html: Path | None) -> None:
    """Report the guarantee, the part of each topic's budget that was spent, and what the figures do not cover.

    The page names topics. It is a copy outside the vault, which an erasure does not reach. An existing file is not
    overwritten.
    """
    from fedmem.policy.policy import Policy
    from fedmem.privacy.report import page
    from fedmem.sdk.privacy import Privacy

    chosen = Policy.load(policy)
    with open_vault(subject, vault_path, secret, write=False) as vault:
        statement = Privacy(vault).report(chosen.topics, chosen.federation)
    if html is not None:
        write_private(html, page(statement))
    emit("privacy.report", asdict(statement) | {"html": html}, lambda out: print_statement(out, statement, html))


@privacy.group()
def ledger() -> None:
    """Check the ledger from which every figure is computed."""


@ledger.command(epilog="Example: fedmem privacy ledger verify --subject ana")
@vault_options
@json_option
def verify(subject: str, vault_path: str | None, secret: Secret) -> None:
    """Check the ledger: its chain, its head in the keystore, and a charge for every run and block.

    The exit code is 6 if a check fails.
    """
    from fedmem.sdk.privacy import Privacy

    with open_vault(subject, vault_path, secret, write=False) as vault:
        checked = asdict(Privacy(vault).verify())
    names = {"head": "digest of the last event", "noted": "events that the keystore vouches for"}
    emit("privacy.ledger.verify", checked,
         lambda out: pairs(out, [(names.get(name, name), value) for name, value in checked.items()]))  # fmt: skip
    if checked["events"] and checked["noted"] is None:
        say("The keystore notes no head of this ledger. A cut at its end shows only in the vault's own runs.")


def print_statement(out: "Console", statement: "Statement", html: Path | None) -> None:
    """Print a statement of the privacy spent.

    Args:
        out: The console.
        statement: The statement.
        html: The file of the report; None if none was written.
    """
    from fedmem.privacy.report import down, lifetime_rows, up

    exact = None if statement.epsilon_pld is None else up(statement.epsilon_pld)
    pairs(out, [("unit", statement.unit), ("neighbours", statement.adjacency), ("δ", f"{statement.delta:g}"),
                ("ε by PLD", exact), ("ε by RDP", up(statement.epsilon_rdp)),
                ("ε of a text added again", up(statement.epsilon_readded))])  # fmt: skip
    topics = [
        (topic.topic, topic.budget, up(topic.epsilon), down(topic.left), up(topic.epsilon_readded))
        for topic in statement.topics
    ]
    titled_table(out, "Topics", ("topic", "budget ε", "spent ε", "left", "ε of a text added again"), topics)
    columns = ("block", "topic", "release", "rate", "σ", "steps", "ε alone", "δ", "state")
    titled_table(out, "Runs", columns, [run_row(run) for run in statement.runs])
    out.print("\nFederations of this device, all together")
    pairs(out, lifetime_rows(statement.lifetime))
    out.print("")
    pairs(out, [("public", line) for line in statement.public])
    pairs(out, [("not covered", line) for line in statement.not_covered])
    pairs(out, [("ledger", f"{statement.events} events, the last with digest {statement.head or '–'}"), ("page", html)])


def titled_table(out: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table with a title. Print nothing if it has no row.

    Args:
        out: The console.
        title: The title.
        columns: Titles of the columns.
        rows: One value for each column.
    """
    if rows:
        out.print(f"\n{title}")
        table(out, columns, rows)


def run_row(run: "Spent") -> tuple[Any, ...]:
    """Return one run as a row of the table.

    Args:
        run: The run.
    """
    from fedmem.privacy.report import up

    settings = run.release[:12], run.sampling_rate, run.noise_multiplier, run.steps
    return run.block, run.topic, *settings, up(run.epsilon), f"{run.delta:g}", run.state


def write_private(file: Path, text: str) -> None:
    """Write a new file that only this user can read.

    Args:
        file: Path of the file.
        text: Its content.

    Raises:
        UsageError: The file exists or cannot be written.
    """
    from fedmem.cli.receipt import write_new

    previous_umask = os.umask(0o077)
    try:
        write_new(file, text)
    finally:
        os.umask(previous_umask)
