"""Open an embedder by its name, or by the digest that a release names.

Invariants
- A release is served by exactly the embedder that its tree was trained with; another one is a VersionMismatch.
- The embedders differ in dimension. So the width of a stored vector tells which embedder made it.

>>> open_embedder(StaticEmbedder().digest).name
'static-minilm-128'
"""

from typing import Literal

from fedmem.errors import VersionMismatch
from fedmem.routing.embedder import Embedder, StaticEmbedder
from fedmem.routing.minilm import MiniLMEmbedder

EmbedderName = Literal["static", "minilm"]


def named_embedder(name: EmbedderName) -> Embedder:
    """Return the embedder of a name.

    Args:
        name: `static` for the table in this package, `minilm` for all-MiniLM-L6-v2 by onnxruntime.

    Raises:
        UsageError: a package of the embedder is not installed.
        VersionMismatch: the installed files of the embedder are other ones than fedmem knows.
    """
    return MiniLMEmbedder() if name == "minilm" else StaticEmbedder()


def open_embedder(digest: str) -> Embedder:
    """Return the embedder with this digest.

    Args:
        digest: SHA-256 in hex, as the manifest of a release names it.

    Raises:
        UsageError: a package of the embedder is not installed.
        VersionMismatch: this version of fedmem has no such embedder, or its installed files are other ones.
    """
    if digest == MiniLMEmbedder.digest:
        return MiniLMEmbedder()
    static = StaticEmbedder()
    if digest == static.digest:
        return static
    raise VersionMismatch(
        f"The release was made with an embedder that this fedmem does not have ({digest[:12]}). "
        "Update fedmem, or fetch a newer release."
    )


def embedder_name(digest: str) -> str:
    """Return the name of the embedder with this digest, or the digest itself if this fedmem does not have it.

    Args:
        digest: SHA-256 in hex. No package of the embedder is needed.
    """
    names = {MiniLMEmbedder.digest: MiniLMEmbedder.name, StaticEmbedder().digest: StaticEmbedder.name}
    return names.get(digest, digest)
