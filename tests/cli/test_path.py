"""path: the folders follow the environment."""

import json

from click.testing import CliRunner

from fedmem.cli.main import main


def test_path_follows_the_environment() -> None:
    result = CliRunner().invoke(main, ["path", "--json"], env={"FEDMEM_HOME": "/h", "FEDMEM_RUNS": "/r"})
    assert json.loads(result.stdout) == {
        "schema": "fedmem.path/1",
        "data": {"home": "/h", "runs": "/r", "slots": "/h/slots", "vaults": "/h/vaults"},
    }
