"""The keystore of the operating system, through the library `keyring`.

Invariants
- On a machine without such a keystore, creating `KeyringKeys` raises an error. Secrets never go to a file instead.
- A backend counts only from the priority 1 on. `keyring` gives a lower one to backends without protection: none at all,
  the null backend, a plain file. In a chain of backends, secrets are written to a protected one only.
- A damaged entry is treated as missing.
"""

import base64
import secrets
from collections.abc import Iterable
from typing import Any

from fedmem.errors import KeystoreError
from fedmem.vault.crypto.keystore import NOTE, NOTES, SECRET_BYTES, missing

LEAST_PRIORITY = 1.0
"""The priority from which `keyring` recommends a backend."""


def protected_backends(backend: Any) -> list[Any]:
    """Return the backends that an operating system protects, the strongest first.

    Args:
        backend: a backend of `keyring`; of a chain, its parts are examined.

    Returns:
        Backends of a priority of at least `LEAST_PRIORITY`; empty if there is none.
    """
    parts = list(getattr(backend, "backends", [backend]))
    return [part for part in parts if float(getattr(part, "priority", 0)) >= LEAST_PRIORITY]


class KeyringKeys:
    """A keystore that stores its secrets in the keystore of the operating system, through `keyring`.

    Args:
        service: the name of the vault inside the keystore.
        backend: a keyring backend; None selects the default one of this machine.

    Raises:
        KeystoreError: this machine has no such keystore, or one without protection only.
    """

    def __init__(self, service: str, backend: Any = None) -> None:
        import keyring
        import keyring.errors

        self._errors = keyring.errors
        self._service = service
        self._backend = keyring.get_keyring() if backend is None else backend
        protected = protected_backends(self._backend)
        if not protected:
            raise KeystoreError(
                "This machine has no OS keystore that protects a key: keyring offers none, or a plain file. Start one, "
                "or create the vault with --keystore passphrase or --keystore keyfile. A recovery kit opens a vault "
                "whose keys are there: `fedmem keys recovery restore`."
            )
        self._writer = protected[0]

    def exists(self, name: str) -> bool:
        return self._read(name) is not None

    def create(self, name: str) -> bytes:
        secret = secrets.token_bytes(SECRET_BYTES)
        self.put(name, secret)
        return secret

    def put(self, name: str, secret: bytes) -> None:
        try:
            self._writer.set_password(self._service, name, base64.b64encode(secret).decode())
        except self._errors.KeyringError as error:
            raise KeystoreError("The OS keystore did not accept a key. Unlock it and try again.") from error

    def load(self, name: str) -> bytes:
        stored = self._read(name)
        if stored is None:
            raise missing(name)
        secret = _decoded(stored)
        if len(secret) != SECRET_BYTES:
            raise missing(name)
        return secret

    def note(self, name: str, value: bytes) -> None:
        self.put(name + NOTE, value)

    def noted(self, name: str) -> bytes | None:
        stored = self._read(name + NOTE)
        return _decoded(stored) or None if stored is not None else None

    def discard(self, names: Iterable[str]) -> None:
        for name in [*names, *(name + NOTE for name in NOTES)]:
            self.destroy(name)

    def destroy(self, name: str) -> None:
        if self._read(name) is None:
            return
        try:
            self._backend.delete_password(self._service, name)
        except self._errors.KeyringError as error:
            raise KeystoreError("The OS keystore did not delete a key. Unlock it and try again.") from error

    def _read(self, name: str) -> str | None:
        try:
            stored: str | None = self._backend.get_password(self._service, name)
        except self._errors.KeyringError as error:
            raise KeystoreError("The OS keystore did not answer. Unlock it and try again.") from error
        return stored


def _decoded(stored: str) -> bytes:
    try:
        return base64.b64decode(stored, validate=True)
    except ValueError:
        return b""  # too short for a secret, as a damaged slot file is
