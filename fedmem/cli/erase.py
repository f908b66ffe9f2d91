"""`fedmem erase`: plan an erasure, run what was planned, verify it, finish or cancel it, and what is due.

Invariants
- `run` executes the plan whose digest a person saw; a vault that changed since refuses (4).
- An erasure that cannot finish ends with 5 and resumes; one that does not verify ends with 6.
- Output names stores, counts, random ids and what is not covered; never a word of the text.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.block import erased, inventory, planned_data
from fedmem.cli.openings import hand_over, reminder
from fedmem.cli.options import Secret, opened, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from fedmem.device.retraining import Retrainer
    from fedmem.sdk.views import Erase

DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
LEARNED = (
    click.option(
        "--blocks", type=click.Choice(["retrain", "delete"]), help="For blocks that learned an erased record."
    ),
    click.option("--release", type=click.Path(path_type=Path), help="Folder of their release; needed to retrain."),
    click.option(
        "--policy", default="default", show_default=True, help="The policy whose budgets hold for retraining."
    ),
)
SCOPE = (
    click.option("--block", metavar="NAME", help="The block of this id or topic, with all of its topic."),
    click.option("--topic", metavar="NAME", help="All of a topic, whether or not it has a block."),
    click.option("--record", metavar="ID", multiple=True, help="A record; may be repeated."),
    click.option("--before", type=DATE, metavar="DATE", help="Every record added before this time, UTC."),
    click.option("--whole-subject", is_flag=True, help="Everything of the subject; the ledger stays."),
    *LEARNED,
)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def with_options(options: Sequence[Option]) -> Option:
    """Add options to a command."""
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


@click.group()
def erase() -> None:
    """Plan, run, verify and finish erasures of a vault."""


@erase.command(epilog="Example: fedmem erase plan --subject ana --record 5f0c… --blocks delete")
@vault_options
@with_options(SCOPE)
@json_option
def plan(subject: str, vault: str | None, secret: Secret, **scope: Any) -> None:
    """Show what an erasure would destroy, and the digest that names exactly this; nothing is changed."""
    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=False) as found:
        planned = Erase(found, retrainer(scope)).plan(**chosen(scope))
    data = planned_data(planned)

    def human(out: Any) -> None:
        inventory(out, data)
        pairs(out, [("digest", planned.digest)])

    emit("erase.plan", data, human)


@erase.command(epilog="Example: fedmem erase run --subject ana --topic health --digest 9b1d… --yes")
@vault_options
@with_options(SCOPE)
@click.option("--digest", required=True, help="What `erase plan` gave for the same scope.")
@click.option("--dry-run", is_flag=True, help="Show what would be erased, and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@json_option
def run(subject: str, vault: str | None, secret: Secret, digest: str, dry_run: bool, yes: bool, **scope: Any) -> None:
    """Erase what was planned, rescan, and sign a receipt. Ends with 4 where the plan no longer holds."""
    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=not dry_run) as found:
        view = Erase(found, retrainer(scope))
        planned = view.plan(**chosen(scope))
        same(planned.digest, digest)
        erased("erase.run", view, planned, dry_run, yes, digest)


@erase.command(epilog="Example: fedmem erase due --subject ana --blocks delete --yes")
@vault_options
@with_options(LEARNED)
@click.option("--dry-run", is_flag=True, help="Show what would be erased, and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@json_option
def due(subject: str, vault: str | None, secret: Secret, dry_run: bool, yes: bool, **learned: Any) -> None:
    """Erase the records that are older than their topic is kept, as `erase keep` says. Ends with 3 where none is."""
    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=not dry_run) as found:
        view = Erase(found, retrainer(learned))
        erased("erase.due", view, view.plan(due=True, blocks=learned["blocks"]), dry_run, yes)


@erase.command(epilog="Example: fedmem erase keep health 30 --subject ana")
@click.argument("topic", required=False)
@click.argument("days", required=False)
@vault_options
@json_option
def keep(topic: str | None, days: str | None, subject: str, vault: str | None, secret: Secret) -> None:
    """Keep the records of TOPIC for DAYS days, or `forever`; without arguments show what holds.

    The rule is sealed in the vault, goes with its topic, and destroys nothing by itself: `erase due` does.
    """
    from fedmem.sdk.views import Erase

    limit = None if topic is None else in_days(days)
    with opened(subject, vault, secret, write=topic is not None) as found:
        view = Erase(found)
        if topic is not None:
            view.keep(topic, limit)
        kept = view.kept()
    if not kept:
        say("Every topic is kept until somebody erases it.")
    emit("erase.keep", {"days": kept}, lambda out: table(out, ("topic", "days"), list(kept.items())))


@erase.command(epilog="Example: fedmem erase verify 0d3c… --subject ana --deep")
@click.argument("erasure")
@vault_options
@click.option("--deep", is_flag=True, help="Read every byte under the vault's folder, and look for earlier keys.")
@json_option
def verify(erasure: str, subject: str, vault: str | None, secret: Secret, deep: bool) -> None:
    """Look again whether anything of an ERASURE (its id) is left. Ends with 6 where something is."""
    from fedmem.errors import VerificationFailed
    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=False) as found:
        checked = Erase(found).verify(erasure, deep=deep)
    rows: list[list[Any]] = [[store, "; ".join(said) or "clean"] for store, said in checked.found.items()]
    data = {"erasure": erasure, "clean": checked.clean, "deep": deep, "found": checked.found}
    emit("erase.verify", data, lambda out: table(out, ("store", "found"), rows))
    if not checked.clean:
        raise VerificationFailed("Something of this erasure is still here. Remove what is named, and verify again.")


@erase.command(epilog="Example: fedmem erase status --subject ana")
@vault_options
@json_option
def status(subject: str, vault: str | None, secret: Secret) -> None:
    """List the erasures of a vault with their states and receipts, and whose opening still waits to be delivered."""
    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=False) as found:
        known = [described(one) for one in Erase(found).status()]
    told("erase.status", known, ("id", "state", "created", "retraining", "opening", "receipt_path"), "No erasures yet.")


@erase.command(epilog="Example: fedmem erase resume --subject ana")
@vault_options
@with_options(LEARNED[1:])
@json_option
def resume(subject: str, vault: str | None, secret: Secret, **learned: Any) -> None:
    """Finish what was cut or could not end, with a release the training anew too; what still cannot ends with 5.

    It also gives the openings of ended erasures that were not delivered yet.
    """
    from fedmem.sdk.views import Erase

    columns = ("id", "state", "receipt_path", "opening")
    with opened(subject, vault, secret, write=True) as found:
        view = Erase(found, retrainer(learned))
        done = resumed(view)
        waiting = [one["id"] for one in done if one["opening"]]
        if told("erase.resume", done, columns, "Nothing is unfinished.", reminder(waiting)) and waiting:
            hand_over(view, waiting)


@erase.command(epilog="Example: fedmem erase cancel 0d3c… --subject ana")
@click.argument("erasure")
@vault_options
@json_option
def cancel(erasure: str, subject: str, vault: str | None, secret: Secret) -> None:
    """Cancel an ERASURE (its id) that has not begun, or a retraining that has not; what is destroyed stays so."""
    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=True) as found:
        known = described(Erase(found).cancel(erasure))
    told("erase.cancel", [known], ("id", "state", "created", "retraining"), "")


def chosen(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The scope of the options, as `Erase.plan` takes it."""
    from datetime import UTC

    before = scope["before"].replace(tzinfo=UTC) if scope["before"] else None
    named = {"block": scope["block"], "topic": scope["topic"], "record": scope["record"] or None, "before": before}
    return named | {"subject": scope["whole_subject"], "blocks": scope["blocks"]}


def retrainer(options: Mapping[str, Any]) -> "Retrainer | None":
    """What retrains, where a release is given."""
    if options["release"] is None:
        return None
    from fedmem.device.retraining import Retrainer
    from fedmem.policy.policy import Policy
    from fedmem.sdk.client import open_release

    return Retrainer(open_release(options["release"]), Policy.load(options["policy"]))


def same(now: str, given: str) -> None:
    """Refuse to go on where the plan is not the one that was seen."""
    import hmac

    from fedmem.errors import Refused

    if not hmac.compare_digest(now.encode(), given.encode()):
        raise Refused(
            "The digest is not that of this plan: the vault or the scope changed. Run `fedmem erase plan` again."
        )


def in_days(days: str | None) -> float | None:
    """A number of days, or None for `forever`. Raises UsageError."""
    from fedmem.errors import UsageError

    if days == "forever":
        return None
    try:
        return float(days or "")
    except ValueError:
        raise UsageError("Say for how many days: a number, or `forever`.") from None


def described(status: Any) -> dict[str, Any]:
    """An erasure as the envelope holds it."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    return asdict(status) | {"created": datetime.fromtimestamp(status.created, UTC).isoformat(timespec="seconds")}


def resumed(view: "Erase") -> list[dict[str, Any]]:
    """Finish what is unfinished; those erasures, and the completed ones whose opening was not delivered."""
    from dataclasses import asdict

    from fedmem.erasure import Outcome
    from fedmem.erasure.openings import WAITING

    done = {one.id: one for one in view.resume()}
    for one in view.status():
        if one.opening == WAITING and one.id not in done and one.receipt_path is not None:
            done[one.id] = Outcome(one.id, one.state, one.receipt_path, view.opening(one.id))
    return [asdict(one) for one in done.values()]


def told(schema: str, erasures: list[dict[str, Any]], columns: Sequence[str], none: str, again: str = "") -> bool:
    """Write a list of erasures, or say that there is none; True if stdout took it. `again` is as `emit` takes it."""
    if not erasures:
        say(none)
    rows: list[list[Any]] = [[one[name] for name in columns] for one in erasures]
    data: Mapping[str, Any] = {"erasures": erasures}
    return emit(schema, data, lambda out: table(out, columns, rows), again)
