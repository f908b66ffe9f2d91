"""`fedmem receipt`: show, check and export signed receipts; needs files and the public key only, but for `opening`.

Invariants
- `show` checks nothing and says so; `export` writes no page of a receipt that does not verify.
- The opening of a commitment comes from a file, a descriptor or a prompt, never from an argument.
"""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.openings import opening as opening_command
from fedmem.cli.output import changing, emit, json_option, pairs, say, table
from fedmem.cli.streams import is_terminal
from fedmem.errors import UsageError, VerificationFailed

if TYPE_CHECKING:
    from rich.console import Console

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NOT_CHECKED = (
    "Nothing was checked: anyone can write such a file. `fedmem receipt verify FILE --key device.pub` checks it."
)
key_option = click.option(
    "--key", type=FILE, required=True, help="The device's public key (PEM), as you got it before."
)


@click.group()
def receipt() -> None:
    """Signed receipts of erasures."""


receipt.add_command(opening_command)


@receipt.command(epilog="Example: fedmem receipt show erasure.dsse.json")
@click.argument("file", type=FILE)
@json_option
def show(file: Path) -> None:
    """Say what the receipt in FILE states, without a key and without checking it."""
    from fedmem.erasure.receipt import read

    content = content_of(file)
    statement = read(content)
    data = {"verified": False, "statement": statement, "receipts": [link(content, statement)]}
    lines = rows(statement, "NOT CHECKED")
    emit("receipt.show", data, lambda out: pairs(out, lines))
    say(NOT_CHECKED)


@receipt.command(epilog="Example: fedmem receipt verify erasure.dsse.json --key device.pub")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@key_option
@click.option("--scope", metavar="KIND:NAME", help="Also check that the receipt is about this scope, as block:health.")
@click.option("--opening", type=FILE, help="Read the opening of the scope's commitment from a file.")
@click.option("--opening-fd", type=int, help="Read the opening from an open descriptor.")
@json_option
def verify(files: tuple[Path, ...], key: Path, scope: str | None, opening: Path | None, opening_fd: int | None) -> None:
    """Check the signature of the receipt in FILE and say what it states. A wrong one ends with 6.

    Of several files, oldest first and from the vault's first receipt on, the chain is checked too. The newest one
    missing cannot be seen in the files: compare the last digest with the one that you know.
    """
    from fedmem.erasure.receipt import verify as check
    from fedmem.erasure.receipt import verify_chain

    if scope is None and (opening is not None or opening_fd is not None):
        raise UsageError("An opening opens a scope: add --scope, as in --scope block:health.")
    if scope is not None and len(files) > 1:
        raise UsageError("An opening belongs to one receipt: give one file with --scope.")
    contents, pem = [content_of(file) for file in files], content_of(key)
    statements = verify_chain(contents, pem) if len(files) > 1 else [check(contents[0], pem)]
    links = [link(*pair) for pair in zip(contents, statements, strict=True)]
    data: dict[str, Any] = {"verified": True, "statement": statements[-1], "receipts": links}
    lines = rows(statements[-1], "valid")
    if scope is not None:
        data["about_scope"] = about(statements[0], scope, secret(opening, opening_fd))
        lines.append(("about the scope given", data["about_scope"]))
    emit("receipt.verify", data, lambda out: told(out, lines, links))
    if data.get("about_scope") is False:
        raise VerificationFailed(
            "The receipt is signed, but its commitment does not open to this scope with this opening."
        )


@receipt.command(epilog="Example: fedmem receipt export erasure.dsse.json --key device.pub --html evidence.html")
@click.argument("file", type=FILE)
@key_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The page to write.")
@json_option
def export(file: Path, key: Path, html: Path) -> None:
    """Write the receipt in FILE as a one-page evidence bundle, for people and for print.

    The page holds the receipt itself. One that does not verify ends with 6 and is not exported; a file that is there
    already is not overwritten.
    """
    from fedmem.erasure.bundle import fingerprint, page

    pem = content_of(key)
    text = page(content_of(file), pem)
    write_new(html, text)
    data = {"html": html, "bytes": len(text.encode()), "key_sha256": fingerprint(pem)}
    emit("receipt.export", data, lambda out: pairs(out, data.items()))


def rows(statement: Mapping[str, Any], signature: str) -> list[tuple[str, Any]]:
    """What a person reads of a statement."""
    from fedmem.erasure.bundle import facts, unknown

    said = facts(statement)
    kinds = Counter(str(item.get("kind")) for item in said["erased"])
    residual = said["residual_epsilon"]
    return [
        ("signature", signature),
        ("erasure", said["erasure"]),
        ("executed", said["executed"]),
        (said["wording"] or "erased", ", ".join(f"{count} {kind}" for kind, count in kinds.items())),
        *((f"store {one.get('name')}", "clean" if one.get("clean") is True else "NOT clean") for one in said["stores"]),
        *((f"block {one.get('id')}", one.get("outcome")) for one in said["blocks"]),
        ("residual ε", residual.get("epsilon")),
        ("because", residual.get("reason")),
        *(("not covered", line) for line in said["not_covered"]),
        *unknown(said).items(),
        ("receipt before it", said["previous"]),
    ]


def link(file: bytes, statement: Mapping[str, Any]) -> dict[str, Any]:
    """The place of one receipt in its chain."""
    from fedmem.storage.canonical import digest

    said = statement["predicate"]
    return {"digest": digest(file), "previous": said.get("previous"), "erasure": said.get("erasure")}


def told(out: "Console", lines: list[tuple[str, Any]], links: Sequence[Mapping[str, Any]]) -> None:
    """Print the newest statement, and the chain where there is one."""
    pairs(out, lines)
    if len(links) > 1:
        out.print(f"\nThe chain of {len(links)} receipts is whole, oldest first:")
        table(out, ("erasure", "digest"), [(one["erasure"], one["digest"]) for one in links])


def about(statement: Mapping[str, Any], scope: str, opening: bytes) -> bool:
    """Whether the receipt is about `scope`, written KIND:NAME."""
    from fedmem.erasure import Scope
    from fedmem.erasure.receipt import opens

    kind, _, name = scope.partition(":")
    return opens(statement, Scope(kind, name), opening)


def secret(file: Path | None, descriptor: int | None) -> bytes:
    """The opening, 32 bytes, from where it was given. Raises UsageError."""
    try:
        opening = bytes.fromhex(typed(file, descriptor).strip())
    except ValueError:
        opening = b""
    if len(opening) != 32:
        raise UsageError("An opening is 64 hexadecimal digits, as the erasure or `fedmem receipt opening` gave it.")
    return opening


def typed(file: Path | None, descriptor: int | None) -> str:
    """The opening's text from a file, a descriptor or the terminal."""
    if file is not None:
        return content_of(file).decode()
    if descriptor is None:
        if not is_terminal(sys.stdin):
            raise UsageError("Give the opening with --opening or --opening-fd, or use a terminal.")
        return str(click.prompt("Opening", hide_input=True, err=True))
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read().decode()
    except OSError:
        raise UsageError(f"Descriptor {descriptor} is not open for reading; try `--opening-fd 3 3<FILE`.") from None


def content_of(file: Path) -> bytes:
    """The bytes of a file, one more than a receipt may have at most."""
    from fedmem.erasure.receipt import LIMIT

    with file.open("rb") as stream:
        return stream.read(LIMIT + 1)


def write_new(file: Path, text: str) -> None:
    """Write a file that is not there yet, or nothing. Raises UsageError where it is there, or has no place."""
    changing()
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists already and was left as it is. Name another file.") from None
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{file} cannot be written: {os.strerror(error.errno or 0)}. Name another place.") from None
    except OSError:
        file.unlink(missing_ok=True)  # half a page is no evidence
        raise
