"""Windows is refused by name, in a process that takes itself for one on Windows."""

import subprocess
import sys

import pytest

from fedmem.errors import UsageError
from fedmem.platforms import require_supported

# Other packages are loaded before, since they look for modules of Windows. fedmem is loaded anew, without the modules
# that Windows lacks: the refusal must come before they are imported.
WINDOWS = """
import sys
import fedmem.cli.main, fedmem.cli.block, fedmem.erasure, fedmem.sdk.client
for name in [name for name in sys.modules if name.split(".")[0] == "fedmem"]:
    del sys.modules[name]
sys.platform = "win32"
sys.modules.update(fcntl=None, resource=None)
"""


def on_windows(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process."""
    return subprocess.run([sys.executable, "-c", WINDOWS + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("platform", ["win32", "cygwin"])
def test_windows_is_refused(platform: str) -> None:
    with pytest.raises(UsageError, match="does not run on Windows"):
        require_supported(platform)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_others_are_not(platform: str) -> None:
    require_supported(platform)


@pytest.mark.parametrize(
    "statement",
    ["from fedmem import Client", "import fedmem.vault.lock", "import fedmem.erasure", "import fedmem.erasure.residue"],
)
def test_an_import_that_needs_a_vault_says_so(statement: str) -> None:
    done = on_windows(f"try:\n    {statement}\nexcept Exception as error:\n    print(type(error).__name__, error)")
    assert done.stdout.startswith("UsageError fedmem does not run on Windows"), done.stdout + done.stderr


def test_the_package_itself_can_be_imported() -> None:
    assert on_windows("import fedmem; print(fedmem.__version__)").returncode == 0


@pytest.mark.parametrize(("words", "code"), [("['doctor']", 2), ("['block', 'list']", 2), ("['--help']", 0)])
def test_a_command_ends_with_a_usage_error(words: str, code: int) -> None:
    done = on_windows(f"from fedmem.cli.main import main; main({words})")
    assert done.returncode == code, done.stderr
    assert ("does not run on Windows" in done.stderr) == (code == 2)
    assert "Traceback" not in done.stderr
