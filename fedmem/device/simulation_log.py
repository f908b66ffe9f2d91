"""Collect the failures and egress lines of simulated devices for the simulation that runs them.

Invariants
- Notes are not part of an answer and are never sent over the wire (I1).
- They are complete and in the order of the answers, whichever process the devices run in.
- Of a failure only the class of the error is kept: its text may quote a record.

>>> worker_log, simulation_log = SimulationLog({}), SimulationLog({})
>>> worker_log.failed(ValueError("the text of a record"))
>>> simulation_log.put(0, worker_log.take(0))
>>> worker_log.failures, simulation_log.failures
([], ['ValueError'])
"""

import json
from collections.abc import Mapping
from dataclasses import asdict

from fedmem.device.inproc import InprocPort
from fedmem.storage.canonical import canonical_json
from fedmem.vault.store.egress_entry import EgressEntry


class SimulationLog:
    """The failures of all devices so far, and access to the egress lines in their ports.

    Args:
        ports: device index -> port.
    """

    def __init__(self, ports: Mapping[int, InprocPort]) -> None:
        self.failures: list[str] = []
        self._ports = ports

    def failed(self, error: Exception) -> None:
        """Add the class of the error of a failed training.

        Args:
            error: the error of the training.
        """
        self.failures.append(type(error).__name__)

    def take(self, index: int) -> bytes:
        """Remove and return the notes since the last call: all failures, and the egress lines of device `index`.

        Args:
            index: index of the device.

        Returns:
            The notes as JSON; empty bytes if there are none.
        """
        lines = self._ports[index].egress if index in self._ports else []
        notes = {"failures": self.failures, "egress": [asdict(line) for line in lines]}
        data = canonical_json(notes) if any(notes.values()) else b""
        self.failures.clear()
        lines.clear()
        return data

    def put(self, index: int, notes: bytes) -> None:
        """Add notes that `take` returned in the process of device `index`.

        Args:
            index: index of the device.
            notes: what `take` returned, not empty.
        """
        entries = json.loads(notes)
        self.failures += entries["failures"]
        if entries["egress"]:
            self._ports[index].egress.extend(EgressEntry(**line) for line in entries["egress"])
