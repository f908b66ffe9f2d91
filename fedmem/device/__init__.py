"""The device inside its boundary: learning, answering, the gate, the vault process and its socket.

Invariants
- The network-facing process imports nothing of this room, of `fedmem.vault` or of `fedmem.policy`.
- This room opens a Unix domain socket and no other.
"""
