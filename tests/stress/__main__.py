"""Stress one vault: `python -m tests.stress --minutes 10 --json`.

Processes with several threads each add, search, train, erase, back up, fork and close on one vault. They are killed and
stopped at random moments. Their journals say what they asked for and what was acknowledged; the check compares the
vault with that. It exits with 12 if anything is wrong.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

from tests.stress.run import stressed


def main() -> None:
    """Run, print the figures, and exit with 12 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the workers work")
    parser.add_argument("--json", action="store_true", help="one JSON envelope on stdout")
    parser.add_argument("--seed", type=int, default=0, help="seed of kills and of the workers' draws")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--threads", type=int, default=4, help="threads of each process")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that a writer waits for others")
    parser.add_argument("--forks", type=float, default=0.005, help="probability that a thread forks before a call")
    parser.add_argument("--folder", type=Path, help="new folder for the run, which is kept; else one below /var/tmp")
    given = parser.parse_args()
    made = nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory(prefix="stress-", dir="/var/tmp")
    with made as folder:
        data = stressed(
            Path(folder).absolute(), 60 * given.minutes, given.seed,
            processes=given.processes, threads=given.threads, timeout=given.timeout, forks=given.forks,
        )  # fmt: skip
    if given.json:
        print(json.dumps({"schema": "fedmem.stress/1", "data": data}))
    else:
        print(*(f"{name:20} {value}" for name, value in data.items()), sep="\n")
    if data["bad"]:
        raise SystemExit(12)


if __name__ == "__main__":
    main()
