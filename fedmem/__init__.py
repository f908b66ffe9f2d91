"""fedmem: shared knowledge in a bank, sensitive knowledge in sealed blocks that can be erased with a receipt.

Invariants
- `import fedmem` loads nothing heavy; `Client` is imported when it is first named.

>>> __version__.count(".")
2
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmem.sdk.client import Client as Client

__all__ = ["Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Client":
        from fedmem.sdk.client import Client

        return Client
    raise AttributeError(f"module 'fedmem' has no attribute {name!r}")
