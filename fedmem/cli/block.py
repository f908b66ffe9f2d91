"""`fedmem block`: private blocks of a vault."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.openings import confirm_openings, reminder
from fedmem.cli.options import Secret, confirm, open_vault, vault_options
from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from fedmem.sdk.views import Erase, PlannedErasure
    from fedmem.vault.vault import BlockInfo


@click.group()
def block() -> None:
    """List, show, migrate and delete the private blocks of a vault."""


@block.command("list", epilog="Example: fedmem block list --subject ana")
@vault_options
@json_option
def list_(subject: str, vault_path: str | None, secret: Secret) -> None:
    """List the blocks, oldest first."""
    from fedmem.sdk.views import Blocks

    with open_vault(subject, vault_path, secret, write=False) as vault:
        blocks = [block_data(info) for info in Blocks(vault).list()]
    if not blocks:
        say("No blocks yet.")
    columns = ("id", "topic", "version", "release", "width", "bytes", "created")
    rows = [[info[name] for name in columns] for info in blocks]
    emit("block.list", {"blocks": blocks}, lambda out: table(out, columns, rows))


@block.command(epilog="Example: fedmem block show health --subject ana")
@click.argument("name")
@vault_options
@json_option
def show(name: str, subject: str, vault_path: str | None, secret: Secret) -> None:
    """Show block NAME: the id of a block, or a topic for the newest block of this topic."""
    from fedmem.sdk.views import Blocks

    with open_vault(subject, vault_path, secret, write=False) as vault:
        data = block_data(Blocks(vault).get(name))
    emit("block.show", data, lambda out: pairs(out, data.items()))


@block.command(epilog="Example: fedmem block migrate health --release releases/r2 --subject ana")
@click.argument("name")
@vault_options
@click.option("--release", required=True, type=click.Path(path_type=Path), help="Folder of the release to move to.")
@click.option("--policy", default="default", show_default=True, help="The policy that sets the budget.")
@json_option
def migrate(name: str, subject: str, vault_path: str | None, secret: Secret, release: Path, policy: str) -> None:
    """Train a new version of block NAME (an id or a topic) for another release, with the plan of the old block.

    The training is charged to the topic's budget. If the budget is spent, it is refused with exit code 4 before it
    starts. The old block stays and serves its own release. The new block serves the new release when its training is
    done. An interrupted training is paused, and the same command continues it.
    """
    from dataclasses import asdict

    from fedmem.cli.client import step_progress, stop_on_signal
    from fedmem.device.training_sessions import migrate as migrate_block
    from fedmem.policy.policy import Policy
    from fedmem.sdk.opening import open_release

    rules, new_release = Policy.load(policy), open_release(release)
    with (
        open_vault(subject, vault_path, secret, write=True) as vault,
        stop_on_signal() as stop,
        step_progress() as progress,
    ):
        old = vault.block(name)
        result = migrate_block(vault, name, new_release, rules, stop=stop, progress=progress)
    data = asdict(result) | {"release": new_release.digest, "old_block": old.id, "old_release": old.release}
    emit("block.migrate", data, lambda out: pairs(out, data.items()))
    say("The old block stays and serves its release. `fedmem block delete` deletes all blocks of the topic.")


@block.command(epilog="Example: fedmem block delete health --subject ana --dry-run")
@click.argument("name")
@vault_options
@click.option("--dry-run", is_flag=True, help="Show what would be erased, and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed without a terminal.")
@json_option
def delete(name: str, subject: str, vault_path: str | None, secret: Secret, dry_run: bool, yes: bool) -> None:
    """Erase block NAME (an id or a topic): plan, execute and verify, with a signed receipt.

    This erases every version of the topic's block, and the records, vectors and run keys of the topic. The exit code
    is 5 if the erasure could not finish and must be resumed, and 6 if it does not verify.
    """
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=not dry_run) as vault:
        view = Erase(vault)
        run_erasure("block.delete", view, view.plan(block=name), dry_run, yes)


def plan_data(planned: "PlannedErasure") -> dict[str, Any]:
    """Return a planned erasure as data of the JSON envelope.

    Args:
        planned: The planned erasure.
    """
    facts = {"plan": planned.digest, "counts": planned.counts, "items": planned.items}
    return facts | {"blocks": planned.blocks, "retrain": planned.retrained, "not_covered": planned.not_covered}


def run_erasure(
    schema: str, view: "Erase", planned: "PlannedErasure", dry_run: bool, yes: bool, digest: str | None = None
) -> None:
    """Ask for confirmation, execute a planned erasure, write the result, and deliver the opening.

    A partial or unverified erasure also writes its envelope.

    Args:
        schema: Name of the command in the envelope.
        view: The erasures of the vault.
        planned: The plan to execute.
        dry_run: Write the plan and do nothing else.
        yes: Execute without a question.
        digest: Digest of the plan that the person saw, if the command has one.

    Raises:
        Refused: The person did not confirm, or the plan no longer holds.
        PartialErasure: The erasure could not finish.
        VerificationFailed: The rescan finds something.
    """
    from dataclasses import asdict

    from fedmem.errors import PartialErasure, VerificationFailed

    data = plan_data(planned)
    if dry_run:
        emit(schema, data | {"state": "planned"}, lambda out: print_inventory(out, data))
        return
    confirm(f"Erase {counts_text(planned.counts)} for good?", yes)
    try:
        result = asdict(planned.execute(digest))
    except (PartialErasure, VerificationFailed) as error:
        state = "partial" if isinstance(error, PartialErasure) else "unverified"
        emit(schema, data | {"state": state, "verified": False}, lambda out: print_inventory(out, data))
        raise
    if emit(schema, data | result, lambda out: print_outcome(out, data | result), reminder([result["id"]])):
        confirm_openings(view, [result["id"]])


def print_inventory(out: "Console", data: Mapping[str, Any]) -> None:
    """Print the number of items in scope, by store, and what the erasure does not cover.

    Args:
        out: The console.
        data: What `plan_data` returned.
    """
    out.print(f"in scope: {counts_text(data['counts'])}")
    if data["blocks"]:
        retrained = f"; {data['retrain']} trained anew" if data["retrain"] else "; none is trained anew"
        out.print(f"blocks that learned from it and go with it: {len(data['blocks'])}{retrained}")
    table(out, ("store", "items"), list(data["items"].items()))
    pairs(out, [("not covered", line) for line in data["not_covered"]])


def print_outcome(out: "Console", data: Mapping[str, Any]) -> None:
    """Print what was erased and what the erasure does not cover, and the receipt.

    Args:
        out: The console.
        data: What `plan_data` returned, with the outcome of the erasure.
    """
    print_inventory(out, data)
    pairs(out, [("state", data["state"]), ("verified", data["verified"])])
    pairs(out, [("trained anew", block) for block in data["retrained"]])
    pairs(out, [("receipt", data["receipt"]), ("opening", data["opening"])])


def counts_text(counts: Mapping[str, int]) -> str:
    """Return counts by kind as text, such as "2 records, 1 block".

    Args:
        counts: Kind in the singular -> number.
    """
    return ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in counts.items())


def block_data(info: "BlockInfo") -> dict[str, Any]:
    """Return a block as data of the JSON envelope.

    Args:
        info: The block.
    """
    from dataclasses import asdict
    from datetime import UTC, datetime

    return asdict(info) | {"created": datetime.fromtimestamp(info.created, UTC).isoformat(timespec="seconds")}
