"""`fedmem receipt opening`, and how every command hands an opening over.

Invariants
- The vault lets go of an opening only after stdout took it, flushed, without an error.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from fedmem.cli.options import Secret, opened, vault_options
from fedmem.cli.output import emit, json_option, say
from fedmem.errors import FedmemError

if TYPE_CHECKING:
    from fedmem.sdk.views import Erase


@click.command(epilog="Example: fedmem receipt opening 0d3c… --subject ana")
@click.argument("erasure")
@vault_options
@json_option
def opening(erasure: str, subject: str, vault: str | None, secret: Secret) -> None:
    """Give the opening of an ERASURE (its id) that was not delivered yet; then the vault lets go of it.

    With it, `receipt verify --scope --opening` shows what the receipt is about. Ends with 3 where the vault does not
    hold it: it was delivered before, or there is no such erasure.
    """
    from fedmem.sdk.views import Erase

    with opened(subject, vault, secret, write=False) as found:
        value = Erase(found).opening(erasure)
    data = {"erasure": erasure, "opening": value}
    if emit("receipt.opening", data, lambda out: out.print(value, soft_wrap=True)):
        with keeping_on_failure(), opened(subject, vault, secret, write=True) as found:
            hand_over(Erase(found), [erasure])


def hand_over(erase: "Erase", erasures: Iterable[str]) -> None:
    """Remove openings from the vault that stdout took."""
    with keeping_on_failure():
        for erasure in erasures:
            erase.confirm_delivery(erasure)
        say("Keep the opening: with it you can show later what was erased. The vault no longer holds it.")


@contextlib.contextmanager
def keeping_on_failure() -> Iterator[None]:
    """Say that an opening stays in the vault, where it does; the command did not fail by that."""
    try:
        yield
    except FedmemError as error:
        say(f"The vault goes on keeping the opening, sealed. {error}")


def reminder(erasures: Iterable[str]) -> str:
    """Return the sentence that says how to get openings that stdout did not take."""
    commands = ", ".join(f"`fedmem receipt opening {erasure}`" for erasure in erasures)
    return f"What was erased is gone, and the vault keeps the opening: {commands} gives it." if commands else ""
