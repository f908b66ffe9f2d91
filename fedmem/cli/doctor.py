"""`fedmem doctor`: check that this machine can keep the promises of fedmem."""

from pathlib import Path

import click

from fedmem.cli.output import emit, json_option, table


@click.command(epilog="Example: fedmem doctor --json")
@click.option("--folder", type=click.Path(path_type=Path), help="Folder for vaults. The default is the usual folder.")
@json_option
def doctor(folder: Path | None) -> None:
    """Check keystore, permissions, SQLite, core dumps, swap, file system and free space.

    The exit code is 12 if a check failed. Warnings do not change it.
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
