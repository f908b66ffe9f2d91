"""`fedmem path`: show the folders of fedmem. No folder is created."""

import click

from fedmem.cli.output import emit, json_option, pairs


@click.command(epilog="Example: fedmem path --json")
@json_option
def path() -> None:
    """Show the folders of home, runs, key slots and vaults.

    The environment variable FEDMEM_HOME sets the home folder, and FEDMEM_RUNS the folder of runs.
    """
    from fedmem import paths

    places = {
        "home": paths.home(),
        "runs": paths.runs_dir(),
        "slots": paths.slots_dir(),
        "vaults": paths.vaults_dir(),
    }
    emit("path", places, lambda out: pairs(out, places.items()))
