"""`fedmem receipt`: check a signed receipt; needs the file and the public key only."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fedmem.cli.output import emit, json_option, pairs

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def receipt() -> None:
    """Signed receipts of erasures."""


@receipt.command(epilog="Example: fedmem receipt verify erasure.dsse.json --key device.pub")
@click.argument("file", type=FILE)
@click.option("--key", type=FILE, required=True, help="The device's public key (PEM), as you got it before.")
@json_option
def verify(file: Path, key: Path) -> None:
    """Check the signature of the receipt in FILE and say what it states. A wrong one ends with 6."""
    from fedmem.erasure.receipt import verify as check

    statement = check(file.read_bytes(), key.read_bytes())
    emit("receipt.verify", {"verified": True, "statement": statement}, lambda out: pairs(out, rows(statement)))


def rows(statement: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a person reads of a statement."""
    said = statement["predicate"]
    kinds = Counter(item["kind"] for item in said["erased"])
    return [
        ("signature", "valid"),
        ("erasure", said["erasure"]),
        ("executed", said["executed"]),
        (said["wording"], ", ".join(f"{count} {kind}" for kind, count in kinds.items())),
        *((f"store {store['name']}", "clean" if store["clean"] else "NOT clean") for store in said["stores"]),
        ("residual ε", said["residual_epsilon"]["epsilon"]),
        ("because", said["residual_epsilon"]["reason"]),
        *(("not covered", line) for line in said["not_covered"]),
    ]
