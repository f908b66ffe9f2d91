"""Access to the vault during a training: reading throughout, and writing for a moment.

Invariants
- `SharedAccess` holds the vault's writer lock only in a `writing` block, so other programs can write between blocks.
- While it waits for the writer lock, it gives way to an erasure, which waits until all readers have closed.

    with SharedAccess(lambda write: Vault.open(root, subject="ana", write=write)) as access:
        with access.writing(patience=5.0) as vault: ...
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, Self

from fedmem.errors import Busy
from fedmem.vault.vault import Vault

ERASED = (
    "Something was erased from the vault meanwhile, so the training stopped. Train again: if its own records were not "
    "erased, it goes on from its checkpoint."
)


class VaultAccess(Protocol):
    """Access to a vault during a session: `vault` is open for reading, `writing` gives write access for a moment."""

    vault: Vault

    def writing(self, patience: float) -> AbstractContextManager[Vault]:
        """Yield the vault, open for writing. Raises Busy if another program writes for more than `patience` seconds."""


class ExclusiveAccess:
    """Access to a vault that this program already has open for writing."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault

    @contextmanager
    def writing(self, patience: float) -> Iterator[Vault]:
        """Yield the vault itself."""
        yield self.vault


class SharedAccess:
    """Access that opens the vault for writing only while a change is made.

    Args:
        open_vault: opens the vault; its argument is True for writing, False for reading.

    Raises what `open_vault` raises.
    """

    def __init__(self, open_vault: Callable[[bool], Vault]) -> None:
        self._open_vault, self.vault = open_vault, open_vault(False)
        self._generation = self.vault.generation

    @contextmanager
    def writing(self, patience: float) -> Iterator[Vault]:
        """Open the vault for writing, and close it at the end of the block. Raises Busy as `VaultAccess.writing`."""
        with self._writer(time.monotonic() + patience) as vault:
            yield vault

    def _writer(self, deadline: float) -> Vault:
        while True:
            try:
                return self._open_vault(True)
            except Busy:
                if time.monotonic() > deadline:
                    raise
            if self.vault.generation != self._generation:  # an erasure waits until this reader stops
                raise Busy(ERASED)
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.vault.close()
