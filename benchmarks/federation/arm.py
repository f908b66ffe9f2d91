"""One arm in a process of its own: `python -m benchmarks.federation.arm NAME DEVICES ROUNDS STEPS` prints JSON."""

import json
import sys
import time

from benchmarks import harness
from benchmarks.federation import ours, peers, work
from fedmem.cli.allocator import keep_buffers

ARMS = {"fedmem": ours.fedmem, "plain": ours.plain, "bare_grid": ours.bare, "ray": peers.ray, "pfl": peers.pfl}


def main() -> None:
    """Run the arm and print seconds of each round, seconds until the first was over, and peak memory."""
    keep_buffers()
    name, devices, rounds, steps = sys.argv[1], *map(int, sys.argv[2:])
    timed, imported = work.Timed(steps > 0), time.perf_counter()
    params = ARMS[name](devices, rounds, steps, timed)
    found = timed.rounds() | {"first": timed.wall[1] - imported, "peak_bytes": harness.status("VmHWM")}
    print(json.dumps(found | ({"loss": work.loss(params)} if steps else {})))


if __name__ == "__main__":
    main()
