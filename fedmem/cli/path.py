"""`fedmem path`: where things are. Creates nothing."""

import click

from fedmem.cli.output import emit, json_option, pairs


@click.command(epilog="Example: fedmem path --json")
@json_option
def path() -> None:
    """Where home, runs, key slots and vaults are.

    FEDMEM_HOME moves everything, FEDMEM_RUNS the runs alone.
    """
    from fedmem import paths

    places = {
        "home": paths.home(),
        "runs": paths.runs_dir(),
        "slots": paths.slots_dir(),
        "vaults": paths.vaults_dir(),
    }
    emit("path", places, lambda out: pairs(out, places.items()))
