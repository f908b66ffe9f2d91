"""Keep the notes of simulated devices for whoever runs the simulation: failures and egress lines.

Invariants
- Notes are no part of an answer, and never go over the wire (I1).
- They are complete and in the order of the answers, in whichever process the devices run.
- Of a failure only the class of the error is kept: its text may quote a record.

>>> aside = SimulationLog({})
>>> aside.failed(ValueError("what a patient said"))
>>> there, here = aside.take(0), SimulationLog({})
>>> here.put(0, there)
>>> aside.failures, here.failures
([], ['ValueError'])
"""

import json
from collections.abc import Mapping
from dataclasses import asdict

from fedmem.device.inproc import InprocPort
from fedmem.storage.canonical import canonical_json
from fedmem.vault.store.egress_entry import EgressEntry


class SimulationLog:
    """Failures of all devices so far, and the egress lines that lie in their `ports`, by device index."""

    def __init__(self, ports: Mapping[int, InprocPort]) -> None:
        self.failures: list[str] = []
        self._ports = ports

    def failed(self, error: Exception) -> None:
        """Note that a device's training failed."""
        self.failures.append(type(error).__name__)

    def take(self, index: int) -> bytes:
        """Remove and return the notes since the last call, those of device `index`; empty where there are none."""
        lines = self._ports[index].egress if index in self._ports else []
        notes = {"failures": self.failures, "egress": [asdict(line) for line in lines]}
        data = canonical_json(notes) if any(notes.values()) else b""
        self.failures.clear()
        lines.clear()
        return data

    def put(self, index: int, notes: bytes) -> None:
        """Enter notes that `take` returned in the process of device `index`."""
        entries = json.loads(notes)
        self.failures += entries["failures"]
        if entries["egress"]:
            self._ports[index].egress.extend(EgressEntry(**line) for line in entries["egress"])
