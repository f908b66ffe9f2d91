"""Options that several commands share: the subject, the vault, and secrets.

Invariants
- A passphrase or recovery code comes from a prompt, a descriptor or a file that others cannot read. It never comes from
  an argument or the environment.
- A new recovery code goes to the terminal or a descriptor, never to stdout's data or a file.
- Without a terminal there are no questions. A missing secret or confirmation is an error.

>>> simulated_vault_root("quickstart-0001/device-0") == runs_dir() / "quickstart-0001/vaults/device-0"
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
    click.option("--subject", required=True, help="Subject of the vault: the name that it was created with."),
    click.option(
        "--vault",
        "vault_path",
        metavar="PATH",
        help="Folder of the vault, or RUN/DEVICE of a simulation. The default is the subject's own vault.",
    ),
)


def vault_options(command: Command) -> Command:
    """Add `--vault`, `--subject` and the passphrase options to a command.

    The command gets `subject`, `vault_path` (None for the subject's own vault) and `secret`.

    Args:
        command: The function of the command.
    """
    decorated = secret_options("passphrase", "the passphrase")(command)
    for option in reversed(VAULT_OPTIONS):
        decorated = option(decorated)
    return decorated


def secret_options(name: str, what: str, into: str = "secret", again: bool = False) -> Callable[[Command], Command]:
    """Return a decorator that adds the options for one secret: `--NAME-file` and `--NAME-fd`.

    Without them the person is asked.

    Args:
        name: Name of the secret in the options.
        what: Name of the secret in texts.
        into: Name of the command's parameter. It gets a function that returns the secret.
        again: Ask twice, for a new secret.
    """
    field = name.replace("-", "_")

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **rest: Any) -> Any:
            file, descriptor = rest.pop(f"{field}_file"), rest.pop(f"{field}_fd")
            ask = functools.partial(prompt, what, name, again)
            return command(*args, **{into: secret_source(file, descriptor, ask)}, **rest)

        file = click.option(f"--{name}-file", type=click.Path(path_type=Path), help=f"Read {what} from a file.")
        return file(click.option(f"--{name}-fd", type=int, help=f"Read {what} from an open descriptor.")(wrapper))

    return add


def open_vault(subject: str, vault_path: str | None, secret: Secret, *, write: bool) -> "Vault":
    """Open and return the vault of the options.

    Args:
        subject: Subject of the vault.
        vault_path: Folder of the vault, or RUN/DEVICE of a simulation. None means the subject's own vault.
        secret: Returns the passphrase, if the keystore needs one.
        write: Open it for writing.

    Raises:
        NothingMatched: There is no such vault.
        FedmemError: Any other error of `Vault.open`.
    """
    from fedmem.vault.vault import Vault

    if write:
        changing()
    return Vault.open(find_vault(subject, vault_path), subject=subject, ask=secret, write=write)


def find_vault(subject: str, vault_path: str | None) -> Path:
    """Return the root folder of the vault of the options.

    Args:
        subject: Name of the subject.
        vault_path: Folder of the vault, or `RUN/DEVICE` of a simulation; None for the subject's own vault.

    Raises:
        NothingMatched: There is no such folder.
    """
    from fedmem.sdk.places import vault_root

    candidates = [vault_root(subject)]
    if vault_path is not None:
        candidates = [Path(vault_path), simulated_vault_root(vault_path)]
    for root in candidates:
        if root.is_dir():
            return root.absolute()
    raise NothingMatched(
        f"No vault at {candidates[0]}. `fedmem path` shows the folder of vaults; --vault names another folder."
    )


def simulated_vault_root(name: str) -> Path:
    """Return the root folder of a simulated vault, named as `RUN/DEVICE`.

    Args:
        name: Name of the run and the device, as `RUN/DEVICE`.
    """
    run, _, device = name.partition("/")
    return runs_dir() / run / "vaults" / device


def secret_source(file: Path | None, descriptor: int | None, ask: Secret | None = None) -> Secret:
    """Return a function that reads a secret at its first call, and returns the same secret at later calls.

    Args:
        file: File to read it from.
        descriptor: Open descriptor to read it from, if no file is given.
        ask: Asks for it if neither is given. The default asks for the passphrase.
    """
    if file is not None:
        return functools.cache(lambda: read_secret_file(file))
    if descriptor is not None:
        return functools.cache(lambda: read_secret_descriptor(descriptor))
    return functools.cache(ask or functools.partial(prompt, "the passphrase", "passphrase"))


def read_secret_file(file: Path) -> str:
    """Return the first line of a file that only this user can read.

    Args:
        file: Path of the file.

    Raises:
        KeystoreError: Others can read the file, it cannot be read, or its first line is empty or not UTF-8.
    """
    try:
        mode = file.stat().st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077:
            raise KeystoreError(f"Others can read {file}: run `chmod 600`, or pass it through a descriptor.")
        return first_line(file.read_bytes())
    except OSError as error:
        raise KeystoreError(f"The secret's file {file} cannot be read ({os.strerror(error.errno or 0)}).") from None


def read_secret_descriptor(descriptor: int) -> str:
    """Return the first line of an open descriptor, which stays open.

    Args:
        descriptor: Number of the descriptor.

    Raises:
        KeystoreError: The descriptor cannot be read, or its first line is empty or not UTF-8.
    """
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return first_line(stream.read())
    except OSError:
        raise KeystoreError(
            f"Descriptor {descriptor} is not open for reading; try `--passphrase-fd 3 3<FILE`."
        ) from None


def first_line(content: bytes) -> str:
    """Return the first line of a content as text, without its end.

    Args:
        content: The bytes.

    Raises:
        KeystoreError: The line is empty or not UTF-8.
    """
    try:
        line = content.decode().split("\n", 1)[0].removesuffix("\r")
    except UnicodeDecodeError:
        line = ""
    if not line:
        raise KeystoreError("The secret given is empty or not UTF-8 text.")
    return line


def prompt(what: str, name: str, again: bool = False) -> str:
    """Ask for a secret on the terminal and return it.

    Args:
        what: The secret in words, such as "the passphrase".
        name: Name of its options, such as "passphrase".
        again: Ask twice and compare.

    Raises:
        KeystoreError: There is no terminal.
    """
    if not streams.is_terminal(sys.stdin):
        raise KeystoreError(f"This needs {what}: give --{name}-file or --{name}-fd, or use a terminal.")
    words = what.removeprefix("the ")
    return str(click.prompt(words[0].upper() + words[1:], hide_input=True, err=True, confirmation_prompt=again))


def code_writer(descriptor: int | None) -> Callable[[str], None]:
    """Return a function that shows a new recovery code once. It raises StorageError if the code cannot be written.

    Call this before the kit is made.

    Args:
        descriptor: Open descriptor to write to. None means the terminal.

    Raises:
        Refused: The descriptor is not open for writing, or there is no terminal.
    """
    if descriptor is not None:
        try:
            os.write(descriptor, b"")
        except OSError:
            raise Refused(f"Descriptor {descriptor} is not open for writing; try `--code-fd 3 3>&1`.") from None
        return lambda text: show_once(lambda: write_all(descriptor, text.encode() + b"\n"), f"descriptor {descriptor}")
    if not streams.is_terminal(sys.stderr):
        raise Refused("The code is shown once, on a terminal, and there is none. Nothing was made. Give --code-fd.")
    return lambda text: show_once(lambda: streams.write(sys.stderr, text + "\n"), "the terminal")


def show_once(show: Callable[[], None], where: str) -> None:
    """Show a new secret.

    Args:
        show: Writes the secret.
        where: Words for the place that it is written to.

    Raises:
        StorageError: The secret could not be written.
    """
    try:
        show()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StorageError(
            f"The code could not be written to {where} ({reason}), and nothing was made. "
            "Repeat the command with a descriptor or terminal that can be written."
        ) from None


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` to an open descriptor.

    Args:
        descriptor: Number of the descriptor.
        data: The bytes.

    Raises:
        OSError: The descriptor cannot be written.
    """
    while data:
        data = data[os.write(descriptor, data) :]


def confirm(question: str, yes: bool) -> None:
    """Ask for a confirmation on the terminal, unless it was given by an option.

    Args:
        question: The question, which is answered with yes or no.
        yes: True if `--yes` was given.

    Raises:
        Refused: There is no confirmation, or no terminal to ask on.
    """
    if yes:
        return
    if not streams.is_terminal(sys.stdin):
        raise Refused(
            "Not confirmed: there is no terminal to ask on. Nothing was done. Add --yes, or --dry-run to look first."
        )
    if not click.confirm(question, default=False, err=True):
        raise Refused("Not confirmed, nothing was done.")
