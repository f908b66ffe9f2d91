"""Options that several nouns share: whose vault, which one, and its passphrase.

Invariants
- A passphrase comes from a prompt, a descriptor or a file that others cannot read; never from an argument
  or the environment.
- Off a terminal nothing is asked: what is missing is refused.

>>> from_run("quickstart-0001/device-0") == runs_dir() / "quickstart-0001/vaults/device-0"
True
"""

import functools
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.errors import KeystoreError, NothingMatched, Refused
from fedmem.paths import runs_dir

if TYPE_CHECKING:
    from fedmem.vault.vault import Vault


Secret = Callable[[], str]
VAULT_OPTIONS = (
    click.option("--subject", required=True, help="Whose vault; the name it was created with."),
    click.option("--vault", metavar="PATH", help="Its folder, or RUN/DEVICE of a simulation; else the subject's own."),
    click.option("--passphrase-file", type=click.Path(path_type=Path), help="Read the passphrase from a file."),
    click.option("--passphrase-fd", type=int, help="Read the passphrase from an open descriptor."),
)


def vault_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--vault`, `--subject` and the ways to give a passphrase; the command gets `subject`, `vault`, `secret`."""

    @functools.wraps(command)
    def joined(*args: Any, passphrase_file: Path | None, passphrase_fd: int | None, **rest: Any) -> Any:
        return command(*args, secret=asker(passphrase_file, passphrase_fd), **rest)

    for option in reversed(VAULT_OPTIONS):
        joined = option(joined)
    return joined


def opened(subject: str, vault: str | None, secret: Secret, *, write: bool) -> "Vault":
    """The vault that the options mean, open. Raises what `Vault.open` raises."""
    from fedmem.vault.vault import Vault

    return Vault.open(find_vault(subject, vault), subject=subject, ask=secret, write=write)


def find_vault(subject: str, vault: str | None) -> Path:
    """Root of the vault that is meant. Raises NothingMatched where there is none."""
    from fedmem.sdk.places import vault_root

    candidates = [vault_root(subject)] if vault is None else [Path(vault), from_run(vault)]
    for root in candidates:
        if root.is_dir():
            return root.absolute()
    raise NothingMatched(
        f"No vault at {candidates[0]}. `fedmem path` shows where vaults lie; --vault names another folder."
    )


def from_run(name: str) -> Path:
    """Root of the vault that `RUN/DEVICE` names among the simulation runs."""
    run, _, device = name.partition("/")
    return runs_dir() / run / "vaults" / device


def asker(file: Path | None, descriptor: int | None) -> Secret:
    """How the passphrase is got, when a vault needs one."""
    if file is not None:
        return lambda: from_file(file)
    if descriptor is not None:
        return lambda: from_descriptor(descriptor)
    return prompt


def from_file(file: Path) -> str:
    """First line of a file that only this user may read. Raises KeystoreError."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077:
            raise KeystoreError(f"Others can read {file}: run `chmod 600`, or pass it through --passphrase-fd.")
        return first_line(file.read_bytes())
    except OSError as error:
        raise KeystoreError(f"The passphrase file {file} cannot be read ({os.strerror(error.errno or 0)}).") from None


def from_descriptor(descriptor: int) -> str:
    """First line of an open descriptor. Raises KeystoreError."""
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return first_line(stream.read())
    except OSError:
        raise KeystoreError(
            f"Descriptor {descriptor} is not open for reading; try `--passphrase-fd 3 3<FILE`."
        ) from None


def first_line(content: bytes) -> str:
    """The passphrase in `content`, without its line end. Raises KeystoreError where it is empty or no text."""
    try:
        line = content.decode().split("\n", 1)[0].removesuffix("\r")
    except UnicodeDecodeError:
        line = ""
    if not line:
        raise KeystoreError("The passphrase given is empty or not UTF-8 text.")
    return line


def prompt() -> str:
    """Ask on the terminal. Raises KeystoreError where there is none."""
    if not sys.stdin.isatty():
        raise KeystoreError(
            "This vault needs a passphrase: give --passphrase-file or --passphrase-fd, or use a terminal."
        )
    return str(click.prompt("Passphrase", hide_input=True, err=True))


def confirm(question: str, yes: bool) -> None:
    """Go on only with `--yes` or a yes on a terminal. Raises Refused."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(
            "Not confirmed and no terminal to ask on; nothing was done. Add --yes, or --dry-run to look first."
        )
    if not click.confirm(question, default=False, err=True):
        raise Refused("Not confirmed, nothing was done.")
