"""Memory for language models: a shared bank, and sealed private blocks that can be erased with a signed receipt.

Invariants
- `import fedmem` loads no large package. `Client` is imported when it is first used.

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
