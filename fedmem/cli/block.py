"""`fedmem block`: private blocks of a vault."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.openings import hand_over, reminder
from fedmem.cli.options import Secret, confirm, opened, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from fedmem.sdk.views import Erase, PlannedErasure
    from fedmem.vault.vault import BlockInfo


@click.group()
def block() -> None:
    """Private blocks of a vault."""


@block.command("list", epilog="Example: fedmem block list --subject ana")
@vault_options
@json_option
def list_(subject: str, vault: str | None, secret: Secret) -> None:
    """List the blocks, oldest first."""
    from fedmem.sdk.views import Blocks

    with opened(subject, vault, secret, write=False) as found:
        known = [described(one) for one in Blocks(found).list()]
    if not known:
        say("No blocks yet.")
    columns = ("id", "topic", "version", "release", "width", "bytes", "created")
    rows = [[one[name] for name in columns] for one in known]
    emit("block.list", {"blocks": known}, lambda out: table(out, columns, rows))


@block.command(epilog="Example: fedmem block show health --subject ana")
@click.argument("name")
@vault_options
@json_option
def show(name: str, subject: str, vault: str | None, secret: Secret) -> None:
    """Show block NAME: its id, or the topic whose newest block is meant."""
    from fedmem.sdk.views import Blocks

    with opened(subject, vault, secret, write=False) as found:
        data = described(Blocks(found).get(name))
    emit("block.show", data, lambda out: pairs(out, data.items()))


@block.command(epilog="Example: fedmem block migrate health --release releases/r2 --subject ana")
@click.argument("name")
@vault_options
@click.option("--release", required=True, type=click.Path(path_type=Path), help="Folder of the release to move to.")
@click.option("--policy", default="default", show_default=True, help="The policy whose budget holds.")
@json_option
def migrate(name: str, subject: str, vault: str | None, secret: Secret, release: Path, policy: str) -> None:
    """Train block NAME (an id or a topic) anew on another release, with its own plan.

    A new training, charged to the topic's budget, and refused (4) before anything where that is spent. The old block
    stays: answers through its release use it, answers through the new one use the new block once it is done.
    Interrupted, it is paused: the same command goes on.
    """
    from dataclasses import asdict

    from fedmem.cli.client import door, steps, stopping
    from fedmem.device.training_sessions import migrate as move
    from fedmem.policy.policy import Policy
    from fedmem.sdk.client import open_release

    rules, new = Policy.load(policy), open_release(release)
    with door(subject, vault, secret) as shared, stopping() as stop, steps() as progress:
        old = shared.vault.block(name)
        trained = move(shared, name, new, rules, stop=stop, progress=progress)
    data = asdict(trained) | {"release": new.digest, "old_block": old.id, "old_release": old.release}
    emit("block.migrate", data, lambda out: pairs(out, data.items()))
    say("The old block stays and answers on its release; it goes with its topic, by `fedmem block delete`.")


@block.command(epilog="Example: fedmem block delete health --subject ana --dry-run")
@click.argument("name")
@vault_options
@click.option("--dry-run", is_flag=True, help="Show what would be erased, and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@json_option
def delete(name: str, subject: str, vault: str | None, secret: Secret, dry_run: bool, yes: bool) -> None:
    """Erase block NAME (an id or a topic): plan, run and verify in one, with a signed receipt.

    Every version of the topic's block goes, and the topic's records, vectors and run keys with it. An erasure that
    cannot finish ends with 5 and resumes; one that does not verify ends with 6.
    """
    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=not dry_run) as found:
        view = Erase(found)
        erased("block.delete", view, view.plan(block=name), dry_run, yes)


def planned_data(planned: "PlannedErasure") -> dict[str, Any]:
    """A plan as the envelope holds it."""
    facts = {"plan": planned.digest, "counts": planned.counts, "items": planned.items}
    return facts | {"blocks": planned.blocks, "retrain": planned.retrained}


def erased(
    schema: str, view: "Erase", planned: "PlannedErasure", dry_run: bool, yes: bool, digest: str | None = None
) -> None:
    """Ask, execute the plan, write what came of it and hand the opening over.

    A partial or unverified erasure keeps its envelope.
    """
    from dataclasses import asdict

    from fedmem.errors import PartialErasure, VerificationFailed

    data = planned_data(planned)
    if dry_run:
        emit(schema, data | {"state": "planned"}, lambda out: inventory(out, data))
        return
    confirm(f"Erase {told(planned.counts)} for good?", yes)
    try:
        result = asdict(planned.execute(digest))
    except (PartialErasure, VerificationFailed) as error:
        state = "partial" if isinstance(error, PartialErasure) else "unverified"
        emit(schema, data | {"state": state, "verified": False}, lambda out: inventory(out, data))
        raise
    if emit(schema, data | result, lambda out: outcome(out, data | result), reminder([result["id"]])):
        hand_over(view, [result["id"]])


def inventory(out: "Console", data: Mapping[str, Any]) -> None:
    """Print what each store holds of the scope."""
    out.print(f"in scope: {told(data['counts'])}")
    if data["blocks"]:
        again = f"; {data['retrain']} trained anew" if data["retrain"] else "; none is trained anew"
        out.print(f"blocks that learned from it and go with it: {len(data['blocks'])}{again}")
    table(out, ("store", "items"), list(data["items"].items()))


def outcome(out: "Console", data: Mapping[str, Any]) -> None:
    """Print what was erased, what that does not cover, and the receipt."""
    inventory(out, data)
    pairs(out, [("state", data["state"]), ("verified", data["verified"])])
    pairs(out, [("not covered", line) for line in data["not_covered"]])
    pairs(out, [("trained anew", block) for block in data["retrained"]])
    pairs(out, [("receipt", data["receipt"]), ("opening", data["opening"])])


def told(counts: Mapping[str, int]) -> str:
    """Counts as words."""
    return ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in counts.items())


def described(info: "BlockInfo") -> dict[str, Any]:
    """A block as the envelope holds it."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    return asdict(info) | {"created": datetime.fromtimestamp(info.created, UTC).isoformat(timespec="seconds")}
