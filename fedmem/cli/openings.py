"""`fedmem receipt opening`, and the delivery of openings by all commands.

Invariants
- The vault removes an opening only after stdout received it and was flushed without an error.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from fedmem.cli.options import Secret, open_vault, vault_options
from fedmem.cli.output import emit, json_option, say
from fedmem.errors import FedmemError

if TYPE_CHECKING:
    from fedmem.sdk.views import Erase


@click.command(epilog="Example: fedmem receipt opening 0d3c… --subject ana")
@click.argument("erasure")
@vault_options
@json_option
def opening(erasure: str, subject: str, vault_path: str | None, secret: Secret) -> None:
    """Print the opening of an ERASURE (its id) that was not delivered yet, and remove it from the vault.

    With the opening, `receipt verify --scope --opening` shows the scope of a receipt. The exit code is 3 if the vault
    does not hold the opening: it was delivered before, or there is no such erasure.
    """
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=False) as vault:
        value = Erase(vault).opening(erasure)
    data = {"erasure": erasure, "opening": value}
    if emit("receipt.opening", data, lambda out: out.print(value, soft_wrap=True)):
        with keeping_on_failure(), open_vault(subject, vault_path, secret, write=True) as vault:
            confirm_openings(Erase(vault), [erasure])


def confirm_openings(erase: "Erase", erasures: Iterable[str]) -> None:
    """Remove the openings of these erasures from the vault. Call it only after stdout received them.

    Args:
        erase: The erasures of a vault that is open for writing.
        erasures: Ids of the erasures.
    """
    with keeping_on_failure():
        for erasure in erasures:
            erase.confirm_delivery(erasure)
        say("Keep the opening: with it you can prove later what was erased. The vault no longer holds it.")


@contextlib.contextmanager
def keeping_on_failure() -> Iterator[None]:
    """Report an error in this block without failing: the opening then stays in the vault."""
    try:
        yield
    except FedmemError as error:
        say(f"The vault keeps the opening, sealed. {error}")


def reminder(erasures: Iterable[str]) -> str:
    """Return the sentence that says how to get openings that stdout did not receive.

    Args:
        erasures: Ids of the erasures.

    Returns:
        "" if there is no id.
    """
    commands = ", ".join(f"`fedmem receipt opening {erasure}`" for erasure in erasures)
    return f"The erasure is done, and the vault keeps the opening. Get it with {commands}." if commands else ""
