"""`fedmem receipt`: show, verify and export signed receipts.

Invariants
- `show`, `verify` and `export` need files and the public key only, and no vault. `items` and `opening` need the vault.
- `show` checks nothing and says so. `export` writes no page of a receipt that does not verify.
- The opening of a commitment comes from a file, a descriptor or a prompt, never from an argument.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.openings import opening as opening_command
from fedmem.cli.options import Secret, open_vault, vault_options
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
    "--key",
    type=FILE,
    required=True,
    help="The device's public key (PEM), as you got it earlier.",
)
keys_option = click.option(
    "--key",
    "keys",
    type=FILE,
    required=True,
    multiple=True,
    help="The device's public key (PEM), as you got it earlier. Repeatable, if the device's key changed.",
)


@click.group()
def receipt() -> None:
    """Show, verify and export signed receipts of erasures."""


receipt.add_command(opening_command)


@receipt.command(epilog="Example: fedmem receipt show erasure.dsse.json")
@click.argument("file", type=FILE)
@json_option
def show(file: Path) -> None:
    """Show the statement of the receipt in FILE, without a key and without a check."""
    from fedmem.erasure.receipt import read

    content = read_file(file)
    statement = read(content)
    data = {"verified": False, "statement": statement, "receipts": [chain_link(content, statement)]}
    lines = statement_rows(statement, "NOT CHECKED")
    emit("receipt.show", data, lambda out: pairs(out, lines))
    say(NOT_CHECKED)


@receipt.command(epilog="Example: fedmem receipt verify erasure.dsse.json --key device.pub")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@keys_option
@click.option("--items", type=FILE, help="Also check that this list, from `receipt items`, is the list of the receipt.")
@click.option("--scope", metavar="KIND:NAME", help="Also check the scope of the receipt, such as block:health.")
@click.option("--opening", type=FILE, help="Read the opening of the scope's commitment from a file.")
@click.option("--opening-fd", type=int, help="Read the opening from an open descriptor.")
@json_option
def verify(
    files: tuple[Path, ...], keys: tuple[Path, ...], items: Path | None, scope: str | None, **of_scope: Any
) -> None:
    """Check the signature of the receipt in FILE and show its statement. The exit code is 6 if it does not verify.

    With several files, the chain is checked too. Give all receipts of the vault, oldest first. The files cannot show
    that the newest receipts are missing: compare the last digest with one that you know.
    """
    from fedmem.erasure.receipt import lists_items, verify_by_any, verify_chain

    opening, opening_fd = of_scope["opening"], of_scope["opening_fd"]
    if scope is None and (opening is not None or opening_fd is not None):
        raise UsageError("An opening belongs to a scope: add --scope, as in --scope block:health.")
    if (scope is not None or items is not None) and len(files) > 1:
        raise UsageError("An opening or a list of items belongs to one receipt: give one file with --scope or --items.")
    contents, pems = [read_file(file) for file in files], [read_file(key) for key in keys]
    statements = verify_chain(contents, *pems) if len(files) > 1 else [verify_by_any(contents[0], pems)[0]]
    links = [chain_link(*pair) for pair in zip(contents, statements, strict=True)]
    data: dict[str, Any] = {"verified": True, "statement": statements[-1], "receipts": links}
    lines = statement_rows(statements[-1], "valid")
    if scope is not None:
        data["about_scope"] = is_about(statements[0], scope, read_opening(opening, opening_fd))
        lines.append(("about the scope given", data["about_scope"]))
    if items is not None:
        data["lists_items"] = lists_items(statements[0], items.read_bytes())
        lines.append(("the list of items given", data["lists_items"]))
    emit("receipt.verify", data, lambda out: print_receipts(out, lines, links))
    if data.get("lists_items") is False:
        raise VerificationFailed("The receipt is signed, but it is about another list of items.")
    if data.get("about_scope") is False:
        raise VerificationFailed(
            "The receipt is signed, but its commitment does not open to this scope with this opening."
        )


@receipt.command(epilog="Example: fedmem receipt items 0d3c… --subject ana --to erased-items")
@click.argument("erasure")
@vault_options
@click.option("--to", "file", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write.")
@json_option
def items(erasure: str, subject: str, vault_path: str | None, secret: Secret, file: Path) -> None:
    """Write the list of the items of an ERASURE (its id) to a new file, one line for each item.

    The receipt of a large erasure holds a Merkle root over these lines, and `receipt verify --items` checks the list
    against it. A line is a JSON list: store, random id, kind, digest and salt of the ciphertext.
    """
    from fedmem.sdk.views import Erase

    with open_vault(subject, vault_path, secret, write=False) as vault:
        lines = Erase(vault).items(erasure)
    write_new(file, "".join(f"{line}\n" for line in lines))
    data = {"erasure": erasure, "file": file, "items": len(lines)}
    emit("receipt.items", data, lambda out: pairs(out, data.items()))


@receipt.command(epilog="Example: fedmem receipt export erasure.dsse.json --key device.pub --html evidence.html")
@click.argument("file", type=FILE)
@key_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The page to write.")
@json_option
def export(file: Path, key: Path, html: Path) -> None:
    """Write the receipt in FILE as a page of evidence that people can read and print.

    The page contains the receipt itself. A receipt that does not verify is not exported, and the exit code is 6. An
    existing file is not overwritten.
    """
    from fedmem.erasure.bundle import fingerprint, page

    pem = read_file(key)
    text = page(read_file(file), pem)
    write_new(html, text)
    data = {"html": html, "bytes": len(text.encode()), "key_sha256": fingerprint(pem)}
    emit("receipt.export", data, lambda out: pairs(out, data.items()))


def statement_rows(statement: Mapping[str, Any], signature: str) -> list[tuple[str, Any]]:
    """Return the facts of a receipt's statement as names and values for a person.

    Args:
        statement: The verified statement.
        signature: Words for the state of the signature.
    """
    from fedmem.erasure.bundle import counts, facts, unknown

    fields = facts(statement)
    root = fields["items"].get("root")
    residual = fields["residual_epsilon"]
    stores = [(store.get("name"), store.get("clean") is True) for store in fields["stores"]]
    return [
        ("signature", signature),
        ("erasure", fields["erasure"]),
        ("executed", fields["executed"]),
        (fields["wording"] or "erased", ", ".join(f"{count} {kind}" for kind, count in counts(fields).items())),
        *([("root of the list of items", root)] if root else []),
        *((f"store {name}", "clean" if is_clean else "NOT clean") for name, is_clean in stores),
        *((f"block {block.get('id')}", block.get("outcome")) for block in fields["blocks"]),
        ("residual ε", residual.get("epsilon")),
        ("because", residual.get("reason")),
        *(("not covered", line) for line in fields["not_covered"]),
        *unknown(fields).items(),
        ("receipt before it", fields["previous"]),
    ]


def chain_link(file: bytes, statement: Mapping[str, Any]) -> dict[str, Any]:
    """Return the link of one receipt in its chain: its digest, the digest of the receipt before it, and the erasure.

    Args:
        file: Bytes of the receipt.
        statement: Its statement.
    """
    from fedmem.storage.canonical import digest

    predicate = statement["predicate"]
    return {"digest": digest(file), "previous": predicate.get("previous"), "erasure": predicate.get("erasure")}


def print_receipts(out: "Console", lines: list[tuple[str, Any]], links: Sequence[Mapping[str, Any]]) -> None:
    """Print the newest statement, and the chain if there are several receipts.

    Args:
        out: The console.
        lines: What `statement_rows` returned for the newest receipt.
        links: What `chain_link` returned for each receipt, oldest first.
    """
    pairs(out, lines)
    if len(links) > 1:
        out.print(f"\nThe chain of {len(links)} receipts is whole, oldest first:")
        table(out, ("erasure", "digest"), [(link["erasure"], link["digest"]) for link in links])


def is_about(statement: Mapping[str, Any], scope: str, opening: bytes) -> bool:
    """Return True if the opening shows that the receipt is about `scope`, written as KIND:NAME.

    Args:
        statement: The verified statement of a receipt.
        scope: The scope, as KIND:NAME.
        opening: The opening, 32 bytes.
    """
    from fedmem.erasure import Scope
    from fedmem.erasure.receipt import opens

    kind, _, name = scope.partition(":")
    return opens(statement, Scope(kind, name), opening)


def read_opening(file: Path | None, descriptor: int | None) -> bytes:
    """Return an opening, 32 bytes, from a file, a descriptor or the terminal.

    Args:
        file: Path of a file, or None.
        descriptor: Number of an open descriptor, or None.

    Raises:
        UsageError: The text is not 64 hexadecimal digits, or there is none to read.
    """
    try:
        opening = bytes.fromhex(read_opening_text(file, descriptor).strip())
    except ValueError:
        opening = b""
    if len(opening) != 32:
        raise UsageError("An opening is 64 hexadecimal digits, as the erasure or `fedmem receipt opening` printed it.")
    return opening


def read_opening_text(file: Path | None, descriptor: int | None) -> str:
    """Return the text of an opening from a file, a descriptor or the terminal.

    Args:
        file: Path of a file, or None.
        descriptor: Number of an open descriptor, or None.

    Raises:
        UsageError: The descriptor cannot be read, or there is no terminal.
    """
    if file is not None:
        return read_file(file).decode()
    if descriptor is None:
        if not is_terminal(sys.stdin):
            raise UsageError("Give the opening with --opening or --opening-fd, or use a terminal.")
        return str(click.prompt("Opening", hide_input=True, err=True))
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read().decode()
    except OSError:
        raise UsageError(f"Descriptor {descriptor} is not open for reading; try `--opening-fd 3 3<FILE`.") from None


def read_file(file: Path) -> bytes:
    """Return the bytes of a file. Read at most one byte more than the longest receipt.

    Args:
        file: Path of the file.
    """
    from fedmem.erasure.receipt import LIMIT

    with file.open("rb") as stream:
        return stream.read(LIMIT + 1)


def write_new(file: Path, text: str) -> None:
    """Write a new text file. After an error no part of it is left.

    Args:
        file: Path of the file.
        text: Its content.

    Raises:
        UsageError: The file exists, or its folder does not exist or cannot be written.
        OSError: The disk failed.
    """
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
