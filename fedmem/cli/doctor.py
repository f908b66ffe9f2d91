"""`fedmem doctor`: can this machine keep what fedmem promises?"""

from pathlib import Path

import click

from fedmem.cli.output import emit, json_option, table


@click.command(epilog="Example: fedmem doctor --json")
@click.option("--folder", type=click.Path(path_type=Path), help="Where vaults would lie; else the usual place.")
@json_option
def doctor(folder: Path | None) -> None:
    """Check keystore, permissions, SQLite, core dumps, swap, file system and free space.

    Warnings are listed and end with 0; a failed check ends with 12.
    """
    from dataclasses import asdict

    from fedmem.errors import QualityGateFailed
    from fedmem.paths import vaults_dir
    from fedmem.sdk.doctor import examine

    checks = examine((folder or vaults_dir()).absolute())
    failed = [check.name for check in checks if check.state == "failed"]
    data = {"passed": not failed, "checks": [asdict(check) for check in checks]}
    rows = [(check.state, check.name, check.detail) for check in checks]
    emit("doctor", data, lambda out: table(out, ("state", "check", "detail"), rows))
    if failed:
        raise QualityGateFailed(f"This machine fails: {', '.join(failed)}. The detail of each says what to do.")
