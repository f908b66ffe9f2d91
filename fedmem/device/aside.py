"""What the devices of a simulation say on their own side: why they failed, and what they entered as having left.

Invariants
- Nothing of it is part of an answer: it goes to whoever runs the simulation, and never over the wire (I1).
- It is complete, and in the order of the answers, in whichever process the devices run.
- Of a failure only the class of the error is kept: its text may quote a record.

>>> aside = Noted({})
>>> aside.failed(ValueError("what a patient said"))
>>> there, here = aside.take(0), Noted({})
>>> here.put(0, there)
>>> aside.failures, here.failures
([], ['ValueError'])
"""

import json
from collections.abc import Mapping
from dataclasses import asdict

from fedmem.canonical import canonical_json
from fedmem.device.inproc import InprocPort
from fedmem.vault.leaving import EgressEntry


class Noted:
    """Failures of all devices so far, and the egress lines that lie in their `ports`, by device index."""

    def __init__(self, ports: Mapping[int, InprocPort]) -> None:
        self.failures: list[str] = []
        self._ports = ports

    def failed(self, error: Exception) -> None:
        """A device's training failed."""
        self.failures.append(type(error).__name__)

    def take(self, index: int) -> bytes:
        """What was noted since the last call, which is then no longer here; empty where there is nothing."""
        lines = self._ports[index].egress if index in self._ports else []
        said = {"failures": self.failures, "egress": [asdict(line) for line in lines]}
        data = canonical_json(said) if any(said.values()) else b""
        self.failures.clear()
        lines.clear()
        return data

    def put(self, index: int, said: bytes) -> None:
        """Enter what `take` gave in the process of device `index`."""
        noted = json.loads(said)
        self.failures += noted["failures"]
        if noted["egress"]:
            self._ports[index].egress.extend(EgressEntry(**line) for line in noted["egress"])
