"""`fedmem route`: explain where a text would be placed, and by which rule."""

from pathlib import Path
from typing import TextIO

import click

from fedmem.cli.output import emit, json_option, pairs


@click.group()
def route() -> None:
    """Explain the placement of texts on this machine. Nothing is stored or sent."""


@route.command(epilog="Example: echo 'my blood test came back' | fedmem route explain -")
@click.argument("file", type=click.File(encoding="utf-8"), default="-")
@click.option("--policy", default="default", help="Policy: a name, or a TOML file.")
@click.option("--topic", help="The topic that an app would declare. It can only tighten.")
@click.option("--release", type=click.Path(path_type=Path), help="Folder of a release. Also show the path in its tree.")
@json_option
def explain(file: TextIO, policy: str, topic: str | None, release: Path | None) -> None:
    """Show where the text in FILE (- is standard input) would be placed, and by which rule. The text is never shown."""
    from dataclasses import asdict

    from fedmem.errors import UsageError
    from fedmem.sdk.explain import explain as explain_placement

    try:
        text = file.read()
    except UnicodeDecodeError:
        raise UsageError("The text is not UTF-8. Convert it, then repeat.") from None
    data = asdict(explain_placement(text, policy=policy, release=release, topic=topic))
    emit("route.explain", data, lambda out: pairs(out, data.items()))
