"""Options that several nouns share: whose vault, which one, and its secrets.

Invariants
- A passphrase or recovery code comes from a prompt, a descriptor or a file that others cannot read; never from an
  argument or the environment. A new recovery code goes to the terminal or a descriptor, never into data or a file.
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

from fedmem.cli import streams
from fedmem.cli.output import changing
from fedmem.errors import KeystoreError, NothingMatched, Refused, StorageError
from fedmem.paths import runs_dir

if TYPE_CHECKING:
    from fedmem.vault.vault import Vault


Secret = Callable[[], str]
Command = Callable[..., Any]
VAULT_OPTIONS = (
    click.option("--subject", required=True, help="Whose vault; the name it was created with."),
    click.option("--vault", metavar="PATH", help="Its folder, or RUN/DEVICE of a simulation; else the subject's own."),
)


def vault_options(command: Command) -> Command:
    """Add `--vault`, `--subject` and the ways to give a passphrase; the command gets `subject`, `vault`, `secret`."""
    joined = secret_options("passphrase", "the passphrase")(command)
    for option in reversed(VAULT_OPTIONS):
        joined = option(joined)
    return joined


def secret_options(name: str, what: str, into: str = "secret", again: bool = False) -> Callable[[Command], Command]:
    """Add the ways to give one secret: `--NAME-file`, `--NAME-fd`, else a prompt; the command gets it as `into`.

    Args:
        what: how texts call it.
        again: ask twice, as for a secret that is new.
    """
    field = name.replace("-", "_")

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def joined(*args: Any, **rest: Any) -> Any:
            file, descriptor = rest.pop(f"{field}_file"), rest.pop(f"{field}_fd")
            ask = functools.partial(prompt, what, name, again)
            return command(*args, **{into: asker(file, descriptor, ask)}, **rest)

        file = click.option(f"--{name}-file", type=click.Path(path_type=Path), help=f"Read {what} from a file.")
        return file(click.option(f"--{name}-fd", type=int, help=f"Read {what} from an open descriptor.")(joined))

    return add


def opened(subject: str, vault: str | None, secret: Secret, *, write: bool) -> "Vault":
    """The vault that the options mean, open. Raises what `Vault.open` raises."""
    from fedmem.vault.vault import Vault

    if write:
        changing()
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


def asker(file: Path | None, descriptor: int | None, ask: Secret | None = None) -> Secret:
    """How a secret is got, where it is needed: once, and given again as often as asked."""
    if file is not None:
        return functools.cache(lambda: from_file(file))
    if descriptor is not None:
        return functools.cache(lambda: from_descriptor(descriptor))
    return functools.cache(ask or functools.partial(prompt, "the passphrase", "passphrase"))


def from_file(file: Path) -> str:
    """First line of a file that only this user may read. Raises KeystoreError."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077:
            raise KeystoreError(f"Others can read {file}: run `chmod 600`, or pass it through a descriptor.")
        return first_line(file.read_bytes())
    except OSError as error:
        raise KeystoreError(f"The secret's file {file} cannot be read ({os.strerror(error.errno or 0)}).") from None


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
    """The secret in `content`, without its line end. Raises KeystoreError where it is empty or no text."""
    try:
        line = content.decode().split("\n", 1)[0].removesuffix("\r")
    except UnicodeDecodeError:
        line = ""
    if not line:
        raise KeystoreError("The secret given is empty or not UTF-8 text.")
    return line


def prompt(what: str, name: str, again: bool = False) -> str:
    """Ask on the terminal. Raises KeystoreError where there is none."""
    if not streams.is_terminal(sys.stdin):
        raise KeystoreError(f"This needs {what}: give --{name}-file or --{name}-fd, or use a terminal.")
    words = what.removeprefix("the ")
    return str(click.prompt(words[0].upper() + words[1:], hide_input=True, err=True, confirmation_prompt=again))


def shower(descriptor: int | None) -> Callable[[str], None]:
    """How a new secret is shown once, before what it opens is made.

    Raises Refused where that could not be shown; what is returned raises StorageError where showing fails.
    """
    if descriptor is not None:
        try:
            os.write(descriptor, b"")
        except OSError:
            raise Refused(f"Descriptor {descriptor} is not open for writing; try `--code-fd 3 3>&1`.") from None
        return lambda text: show_once(lambda: write_all(descriptor, text.encode() + b"\n"), f"descriptor {descriptor}")
    if not streams.is_terminal(sys.stderr):
        raise Refused("The code is shown once, on a terminal, and there is none; nothing was made. Give --code-fd.")
    return lambda text: show_once(lambda: streams.write(sys.stderr, text + "\n"), "the terminal")


def show_once(show: Callable[[], None], where: str) -> None:
    """Show a new secret. Raises StorageError where it cannot be written."""
    try:
        show()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StorageError(
            f"The code could not be written to {where} ({reason}), and nothing was made. Repeat it where it can be."
        ) from None


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` to an open descriptor."""
    while data:
        data = data[os.write(descriptor, data) :]


def confirm(question: str, yes: bool) -> None:
    """Go on only with `--yes` or a yes on a terminal. Raises Refused."""
    if yes:
        return
    if not streams.is_terminal(sys.stdin):
        raise Refused(
            "Not confirmed and no terminal to ask on; nothing was done. Add --yes, or --dry-run to look first."
        )
    if not click.confirm(question, default=False, err=True):
        raise Refused("Not confirmed, nothing was done.")
