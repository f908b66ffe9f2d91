"""The protocol of a federation: wire schema, device and coordinator logic, Flower codec, frames of the socket.

Invariants
- Importing any module of this package sets the outbound switches before that module can import flwr (I10).
"""

from fedmem.federation.offline import set_switches

__all__ = ["set_switches"]
