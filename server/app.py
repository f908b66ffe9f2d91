"""The Flower ServerApp: it runs rounds from a release, with a journal in a folder of its own.

Invariants
- The loop is `fedmem.coordinator.run_rounds`, the same as in a simulation.
- Plan, rounds and local settings come from one public terms file. A device with another plan answers with zeros.
- The key of the noise is new for each process, and is held by it only. A coordinator that was killed goes on from its
  journal with a new key. No result of the interrupted round was sent, so no noise and no sample is used twice.

    flwr run . --run-config "release='releases/…' terms='terms.toml' out='out'"
"""

import secrets
from pathlib import Path

from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import Patience, make_server_app, resume_coordinator
from fedmem.errors import UsageError
from fedmem.federation.flower import Context, require_offline, require_own_installation
from fedmem.federation.local_training import load_federated_part
from fedmem.federation.rounds import Coordinator
from fedmem.federation.terms import Agreement
from fedmem.privacy.stream import PrivacyStream

require_offline()
require_own_installation(__file__)


def start(context: Context) -> tuple[Coordinator, Journal, int, Patience]:
    """Return coordinator, journal, number of rounds and patience, from Flower's run config.

    Raises:
        UsageError: the run config lacks `release`, `terms` or `out`, or the terms are not valid.
        Refused: `out` holds a federation under other terms.
        NothingMatched, VerificationFailed, VersionMismatch: as reading the terms and the release.
    """
    values = {key: str(context.run_config.get(key, "")) for key in ("release", "terms", "out")}
    for key, value in values.items():
        if not value:
            raise UsageError(f"The run config needs {key}; see server/README.md.")
    rounds, devices = _number(context, "rounds"), _number(context, "devices")
    agreement = Agreement.load(Path(values["terms"]))
    journal = Journal(Path(values["out"]))
    journal.bind(agreement.to_dict())
    start_params = load_federated_part(Path(values["release"]), agreement).params()
    noise = PrivacyStream(secrets.token_bytes(32), agreement.plan.digest().encode())
    coordinator = resume_coordinator(
        journal, lambda params, done: Coordinator(params or start_params, agreement.plan, noise, agreement.rounds, done)
    )
    return coordinator, journal, rounds or agreement.plan.rounds, Patience(nodes=devices)


def _number(context: Context, key: str) -> int:
    value = context.run_config.get(key, 0)
    if type(value) is not int or value < 0:
        raise UsageError(f"The run config needs a whole number from 0 for {key}; see server/README.md.")
    return value


app = make_server_app(start)
