"""Names and shapes of the federated parameters of a release, computed in a process of its own.

Invariants
- The calling process loads no torch: a vault process runs for days and trains nothing.
- The whole release is checked: the digest of every file, the digest that the terms name, and the embedder.

    shapes = shapes_of(release_folder, agreement)
"""

import json
import subprocess
import sys
from pathlib import Path

from fedmem import errors
from fedmem.federation.offline import SWITCHES  # noqa: F401  (set before torch and transformers are imported)
from fedmem.federation.terms import Agreement
from fedmem.federation.wire import Shapes


def shapes_of(folder: Path, agreement: Agreement) -> Shapes:
    """Return names and shapes of the parts of the release in `folder` that the terms name.

    Args:
        folder: folder of the release.
        agreement: the terms, which name the release and its federated parts.

    Raises:
        NothingMatched: there is no release in `folder`.
        VerificationFailed: a file of the release has changed.
        VersionMismatch: the release or its embedder is another one than the terms name.
        FedmemError: the process ended without an answer.
    """
    command = [sys.executable, "-m", "fedmem.federation.release_shapes", str(folder)]
    terms = json.dumps(agreement.to_dict())
    process = subprocess.run(command, input=terms, capture_output=True, text=True, check=False)  # noqa: S603 (a list)
    try:
        answer = json.loads(process.stdout)
    except ValueError:
        raise errors.FedmemError("The release could not be read: its process failed. Run `fedmem doctor`.") from None
    if "error" in answer:
        raise getattr(errors, answer["error"], errors.FedmemError)(answer["message"])
    return {name: tuple(shape) for name, shape in answer["shapes"].items()}


def main() -> None:
    """Read the terms from stdin and the folder from the arguments; write the shapes to stdout as JSON."""
    from fedmem.federation import wire
    from fedmem.federation.local_training import load_federated_part

    try:
        part = load_federated_part(Path(sys.argv[1]), Agreement.from_dict(json.load(sys.stdin)))
        answer: dict[str, object] = {"shapes": wire.shapes_of(part.params())}
    except errors.FedmemError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
