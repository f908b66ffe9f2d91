"""The Flower ServerApp: rounds over a release, journalled in a folder of its own.

Invariants
- The loop is `fedmem.federation.apps.run_rounds`, the same as in a simulation without Ray.
- Journal, ledger and checkpoints lie in `out`, by default in the run folder under `flower/<Flower's run id>`.

    flwr run . --federation-config "num-supernodes=2"
"""

from pathlib import Path

from fedmem.errors import Refused
from fedmem.federation import apps
from fedmem.federation.apps import Patience
from fedmem.federation.coordinator import Coordinator
from fedmem.federation.flower import Context, require_offline
from fedmem.federation.journal import Journal
from fedmem.sim.replay import Replay

require_offline()
apps.require_own_installation(__file__)


def start(context: Context) -> tuple[Coordinator, Journal, int, Patience]:
    """Coordinator, journal, number of rounds and patience, from Flower's run config."""
    replay = Replay.of(context.run_config)
    named = str(context.run_config["out"])
    journal = Journal(Path(named) if named else replay.sim.folder.root / "flower" / str(context.run_id))
    if journal.log.entries():
        raise Refused(
            f"{journal.root} holds an earlier federation whose noise key is gone; name another folder as out."
        )
    return replay.coordinator(), journal, replay.rounds, Patience(nodes=replay.devices)


app = apps.make_server_app(start)
