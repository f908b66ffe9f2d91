"""`fedmem erase`: plan, run, verify, resume and cancel erasures of a vault.

Invariants
- `run` executes only the plan whose digest is given. If the vault changed after the plan, it refuses with 4.
- An erasure that cannot finish exits with 5 and can be resumed. An erasure that does not verify exits with 6.
- Output contains stores, counts, random ids and what is not covered, never the text of a record.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.block import plan_data, print_inventory, run_erasure
from fedmem.cli.openings import confirm_openings, reminder
from fedmem.cli.options import Secret, open_vault, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from fedmem.device.retraining import Retrainer
    from fedmem.sdk.views import Erase

DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
LEARNED = (
    click.option(
        "--blocks", type=click.Choice(["retrain", "delete"]), help="Action for blocks that learned an erased record."
    ),
    click.option("--release", type=click.Path(path_type=Path), help="Folder of their release. Needed to retrain."),
    click.option("--policy", default="default", show_default=True, help="The policy that sets budgets for retraining."),
)
SCOPE = (
    click.option("--block", metavar="NAME", help="The block with this id or topic, and everything of its topic."),
    click.option("--topic", metavar="NAME", help="Everything of a topic, also if it has no block."),
    click.option("--record", metavar="ID", multiple=True, help="A record. Repeatable."),
    click.option("--before", type=DATE, metavar="DATE", help="Every record added before this time, UTC."),
    click.option("--whole-subject", is_flag=True, help="Everything of the subject. The ledger stays."),
    *LEARNED,
)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def with_options(options: Sequence[Option]) -> Option:
    """Return a decorator that adds options to a command.

    Args:
        options: The options, in the order of the help.
    """
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


@click.group()
def erase() -> None:
    """Plan, run, verify and resume erasures of a vault."""


@erase.command(epilog="Example: fedmem erase plan --subject ana --record 5f0c… --blocks delete")
@vault_options
@with_options(SCOPE)
@json_option
def plan(subject: str, vault_path: str | None, secret: Secret, **scope: Any) -> None:
    """Show what an erasure would delete, and the digest of this plan. Nothing is changed."""
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=False) as vault:
        planned = Erase(vault, retrainer_of(scope)).plan(**scope_arguments(scope))
    data = plan_data(planned)

    def human(out: Any) -> None:
        print_inventory(out, data)
        pairs(out, [("digest", planned.digest)])

    emit("erase.plan", data, human)


@erase.command(epilog="Example: fedmem erase run --subject ana --topic health --digest 9b1d… --yes")
@vault_options
@with_options(SCOPE)
@click.option("--digest", required=True, help="Digest that `erase plan` printed for the same scope.")
@click.option("--dry-run", is_flag=True, help="Show what would be erased, and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed without a terminal.")
@json_option
def run(
    subject: str, vault_path: str | None, secret: Secret, digest: str, dry_run: bool, yes: bool, **scope: Any
) -> None:
    """Execute a plan, scan the vault again, and sign a receipt. The exit code is 4 if the plan no longer holds."""
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=not dry_run) as vault:
        view = Erase(vault, retrainer_of(scope))
        planned = view.plan(**scope_arguments(scope))
        check_digest(planned.digest, digest)
        run_erasure("erase.run", view, planned, dry_run, yes, digest)
    if scope["whole_subject"] and not dry_run:
        say(
            "The vault's folder, the subject's name in it and the privacy ledger are still there. "
            "`fedmem vault remove` removes them and the keys."
        )


@erase.command(epilog="Example: fedmem erase due --subject ana --blocks delete --yes")
@vault_options
@with_options(LEARNED)
@click.option("--dry-run", is_flag=True, help="Show what would be erased, and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed without a terminal.")
@json_option
def due(subject: str, vault_path: str | None, secret: Secret, dry_run: bool, yes: bool, **learned: Any) -> None:
    """Erase the records that are older than `erase keep` allows. The exit code is 3 if there is none."""
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=not dry_run) as vault:
        view = Erase(vault, retrainer_of(learned))
        run_erasure("erase.due", view, view.plan(due=True, blocks=learned["blocks"]), dry_run, yes)


@erase.command(epilog="Example: fedmem erase keep health 30 --subject ana")
@click.argument("topic", required=False)
@click.argument("days", required=False)
@vault_options
@json_option
def keep(topic: str | None, days: str | None, subject: str, vault_path: str | None, secret: Secret) -> None:
    """Set that records of TOPIC are kept for DAYS days, or `forever`. Without arguments, show the rules.

    The rule is sealed in the vault and is erased together with its topic. It deletes nothing by itself: run `erase
    due` for that.
    """
    from fedmem.sdk.views import Erase

    limit = None if topic is None else parse_days(days)
    with open_vault(subject, vault_path, secret, write=topic is not None) as vault:
        view = Erase(vault)
        if topic is not None:
            view.keep(topic, limit)
        limits = view.kept()
    if not limits:
        say("No topic has a limit. Records are kept until they are erased.")
    emit("erase.keep", {"days": limits}, lambda out: table(out, ("topic", "days"), list(limits.items())))


@erase.command(epilog="Example: fedmem erase verify 0d3c… --subject ana --deep")
@click.argument("erasure")
@vault_options
@click.option("--deep", is_flag=True, help="Read every byte under the vault's folder, and look for earlier keys.")
@json_option
def verify(erasure: str, subject: str, vault_path: str | None, secret: Secret, deep: bool) -> None:
    """Check that nothing of an ERASURE (its id) is left in the vault. The exit code is 6 if something is."""
    from fedmem.errors import VerificationFailed
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=False) as vault:
        result = Erase(vault).verify(erasure, deep=deep)
    rows: list[list[Any]] = [[store, "; ".join(lines) or "clean"] for store, lines in result.remnants.items()]
    data = {"erasure": erasure, "clean": result.is_clean, "deep": deep, "found": result.remnants}
    emit("erase.verify", data, lambda out: table(out, ("store", "found"), rows))
    if not result.is_clean:
        raise VerificationFailed("Something of this erasure is still here. Remove what is named, and verify again.")


@erase.command(epilog="Example: fedmem erase status --subject ana")
@vault_options
@json_option
def status(subject: str, vault_path: str | None, secret: Secret) -> None:
    """List the erasures of a vault: state, receipt, and whether the opening was delivered."""
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=False) as vault:
        erasures = [status_data(entry) for entry in Erase(vault).status()]
    columns = ("id", "state", "created", "retraining", "opening", "receipt_path")
    emit_erasures("erase.status", erasures, columns, "No erasures yet.")


@erase.command(epilog="Example: fedmem erase resume --subject ana")
@vault_options
@with_options(LEARNED[1:])
@json_option
def resume(subject: str, vault_path: str | None, secret: Secret, **learned: Any) -> None:
    """Finish interrupted and partial erasures. With --release, also finish their retraining.

    It also prints the openings of finished erasures that were not delivered yet. The exit code is 5 if an erasure still
    cannot finish.
    """
    from fedmem.sdk.views import Erase

    columns = ("id", "state", "receipt_path", "opening")
    with open_vault(subject, vault_path, secret, write=True) as vault:
        view = Erase(vault, retrainer_of(learned))
        erasures = resume_erasures(view)
        undelivered = [entry["id"] for entry in erasures if entry["opening"]]
        is_written = emit_erasures("erase.resume", erasures, columns, "Nothing is unfinished.", reminder(undelivered))
        if is_written and undelivered:
            confirm_openings(view, undelivered)


@erase.command(epilog="Example: fedmem erase cancel 0d3c… --subject ana")
@click.argument("erasure")
@vault_options
@json_option
def cancel(erasure: str, subject: str, vault_path: str | None, secret: Secret) -> None:
    """Cancel an ERASURE (its id), or its retraining, that has not begun. Deleted content stays deleted."""
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=True) as vault:
        cancelled = status_data(Erase(vault).cancel(erasure))
    emit_erasures("erase.cancel", [cancelled], ("id", "state", "created", "retraining"), "")


def scope_arguments(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scope options of a command as arguments of `Erase.plan`.

    Args:
        scope: Values of the options `SCOPE`.
    """
    from datetime import UTC

    before = scope["before"].replace(tzinfo=UTC) if scope["before"] else None
    names = {"block": scope["block"], "topic": scope["topic"], "record": scope["record"] or None, "before": before}
    return names | {"subject": scope["whole_subject"], "blocks": scope["blocks"]}


def retrainer_of(options: Mapping[str, Any]) -> "Retrainer | None":
    """Return the retrainer for the release of the options. Return None if no release is given.

    Args:
        options: Values of the options `LEARNED`.
    """
    if options["release"] is None:
        return None
    from fedmem.device.retraining import Retrainer
    from fedmem.policy.policy import Policy
    from fedmem.sdk.opening import open_release

    return Retrainer(open_release(options["release"]), Policy.load(options["policy"]))


def check_digest(current: str, expected: str) -> None:
    """Check that a plan is the one that the person saw.

    Args:
        current: Digest of the current plan, hexadecimal.
        expected: Digest that the person gave.

    Raises:
        Refused: The digests differ.
    """
    import hmac

    from fedmem.errors import Refused

    if not hmac.compare_digest(current.encode(), expected.encode()):
        raise Refused(
            "The digest is not that of this plan: the vault or the scope changed. Run `fedmem erase plan` again."
        )


def parse_days(days: str | None) -> float | None:
    """Return the number of days of an argument.

    Args:
        days: A number, or `forever`.

    Returns:
        The number; None for `forever`.

    Raises:
        UsageError: The text is neither.
    """
    from fedmem.errors import UsageError

    if days == "forever":
        return None
    try:
        return float(days or "")
    except ValueError:
        raise UsageError("Give the number of days to keep records, or `forever`.") from None


def status_data(status: Any) -> dict[str, Any]:
    """Return the status of an erasure as data of the JSON envelope.

    Args:
        status: The status of the engine.
    """
    from dataclasses import asdict
    from datetime import UTC, datetime

    return asdict(status) | {"created": datetime.fromtimestamp(status.created, UTC).isoformat(timespec="seconds")}


def resume_erasures(view: "Erase") -> list[dict[str, Any]]:
    """Finish the unfinished erasures. Return them, and the completed ones whose opening was not delivered.

    Args:
        view: The erasures of a vault that is open for writing.

    Returns:
        Data of each erasure.
    """
    from dataclasses import asdict

    from fedmem.erasure import Outcome
    from fedmem.erasure.openings import WAITING

    outcomes = {outcome.id: outcome for outcome in view.resume()}
    for entry in view.status():
        if entry.opening == WAITING and entry.id not in outcomes and entry.receipt_path is not None:
            outcomes[entry.id] = Outcome(entry.id, entry.state, entry.receipt_path, view.opening(entry.id))
    return [asdict(outcome) for outcome in outcomes.values()]


def emit_erasures(
    schema: str, erasures: list[dict[str, Any]], columns: Sequence[str], if_empty: str, again: str = ""
) -> bool:
    """Write a list of erasures.

    Args:
        schema: Name of the command in the envelope.
        erasures: Data of the erasures.
        columns: Keys of the data to show in the table.
        if_empty: Sentence for an empty list.
        again: As in `emit`.

    Returns:
        True if stdout received all of it.
    """
    if not erasures:
        say(if_empty)
    rows: list[list[Any]] = [[entry[name] for name in columns] for entry in erasures]
    data: Mapping[str, Any] = {"erasures": erasures}
    return emit(schema, data, lambda out: table(out, columns, rows), again)
