"""Write the vectors of container, key table and receipt again: `python tests/vectors/make.py [FOLDER]`.

One file is one scenario with the class that reading it must give. Containers are made by a second writer with fixed
salts, and Ed25519 has no randomness: the same bytes come out each time, and a test compares them with what is checked
in. Add scenarios; change an old one only with a new format version.
"""

import json
import sys
from pathlib import Path

import containers
import keytables
import receipts
import tools

MAKERS = {"container": containers.made, "keytable": keytables.made, "receipt": receipts.made}


def main(folder: Path) -> None:
    """Write every vector under `folder`."""
    for kind, maker in MAKERS.items():
        (folder / kind).mkdir(exist_ok=True)
        for name, vector in maker().items():
            text = json.dumps(tools.plain(vector), indent=1, sort_keys=True)
            (folder / kind / f"{name}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
