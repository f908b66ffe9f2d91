"""Recovery kits: a file and a code that open a vault whose keystore is lost. `recovery_kit` has their format.

Invariants
- The header of the key table holds the epoch key, sealed to the kit's public key. So each new epoch key can be sealed
  to the kit without the kit's file or code. An erasure or `rotate` removes the kit from the header. From then on the
  kit opens nothing that is written later.
- A retired kit still opens a copy of the vault, or a backup, of its own time. So an erasure removes the kits that it
  can reach, and lists the others in `not_covered`.
- `restore` puts the keys into a new set of slots of the chosen backend. A crash leaves the old state or the new one.
- A kit does not carry the key that signs receipts. `restore` creates a new one; see `device_key`.
- If the notes of the keystore still exist, an older version of the vault is not restored: RolledBack.

    kit_id, code = create(vault, Path("/media/stick/kit"), show=print)     # the code, once
    restore(root, file, code, subject="ana", keystore="keyring")
"""

import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedmem import paths
from fedmem.errors import KeystoreError, Refused, UsageError
from fedmem.storage.files import Files
from fedmem.storage.ids import new_id
from fedmem.vault.backup import backup_registry
from fedmem.vault.backup.recovery_kit import CODE_BYTES, Kit, KitKeys, encode, open_kit, spell
from fedmem.vault.crypto import container, hpke, rekey, vault_header
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.crypto.keystore import Ask, Keystore
from fedmem.vault.crypto.sealed_table import epoch_name, numbers_of
from fedmem.vault.crypto.vault_header import Header
from fedmem.vault.opening import TABLE, TIMEOUT, check_sealed
from fedmem.vault.store.core import take_writer_lock
from fedmem.vault.vault import Vault

MAX_KITS = 8  # valid at the same time; the header of the key table has at most 4096 bytes


def create(vault: Vault, place: Path, show: Callable[[str], None] = lambda code: None) -> tuple[str, str]:
    """Write a recovery kit to the new file `place`; return its id and its code.

    Guarantees
        The kit and its code together open the vault until an erasure or a rotation of keys. Each alone opens nothing.

    Args:
        show: shows the code to the user. It is called before the kit is written; if it raises, no kit is created.

    Raises:
        Refused: the file exists, or lies in the vault or beside its keys, or too many kits are valid.
        UsageError: the folder of `place` is missing. StorageError, KeystoreError.
    """
    core, place = vault.core, place.absolute()
    kits = core.table.facts.get("kits", {})
    check_place(vault.root, place)
    if len(kits) >= MAX_KITS:
        raise Refused(
            f"{MAX_KITS} recovery kits are valid already. `fedmem keys rotate` retires them all; then make a new one."
        )
    kit_id, code, key = new_id(), secrets.token_bytes(CODE_BYTES), X25519PrivateKey.generate()
    show(spell(code))
    with core.writing():
        backup_registry.register(core, kit_id, backup_registry.KIT, place)
        core.files.replace(place, encode(vault.id, kit_id, code, key))
        # From here on the kit opens the vault.
        core.table.rewrite(facts={**core.table.facts, "kits": {**kits, kit_id: hpke.public_of(key)}})
    return kit_id, spell(code)


def check(root: Path, file: bytes, code: str, files: Files | None = None) -> Kit:
    """Check that a kit and its code open the present vault at `root`, and return the kit. Nothing is changed.

    Args:
        file: the content of the kit's file.
        code: the code as `create` returned it.

    Raises:
        KeystoreError: a mistyped code, or the code of another kit. Refused: a kit of another vault.
        VerificationFailed: a damaged kit or vault, or a kit that was retired. NothingMatched: no vault.
    """
    kit = open_kit(file, code)
    _open_table(files or Files(), root, kit)
    return kit


def restore(
    root: Path,
    file: bytes,
    code: str,
    *,
    subject: str,
    keystore: str,
    ask: Ask | None = None,
    files: Files | None = None,
    timeout: float = TIMEOUT,
) -> Kit:
    """Put the vault's keys from a kit into a new keystore, and return the kit. The lost keystore is replaced.

    Guarantees
        After a crash the vault opens with the kit, or with the new keystore. Nothing is changed before the kit, the
        code, the subject and the vault's parts are checked.

    Args:
        file: the content of the kit's file.
        code: the code as `create` returned it.
        subject: the subject that the vault was created for.
        keystore: backend of the new keystore: keyfile, passphrase or keyring.
        ask: returns the new passphrase; the passphrase keystore needs it.
        timeout: seconds to wait for other writers.

    Raises:
        Busy: other writers. Refused: another vault's kit, or another subject.
        KeystoreError: a wrong code, no passphrase, or no such keystore on this machine. UsageError: an unknown backend.
        VerificationFailed: a damaged or retired kit, or a damaged or older vault. StorageError.
    """
    files, kit = files or Files(), open_kit(file, code)
    lock = take_writer_lock(root, timeout)
    try:
        header, data = vault_header.read_facts(files, root)
        table = _open_table(files, root, kit)
        check_sealed(table, data, subject)
        rekey.finish_move(files, root, table)
        header = vault_header.read_facts(files, root)[0]
        rekey.renew(files, root, table, header, keystore, ask, lost=True)
    finally:
        lock.release()
    return kit


def check_place(root: Path, place: Path) -> None:
    """Check that a kit or backup can be created at `place`.

    Args:
        root: the vault's folder.
        place: path of the new kit's file or the new backup's folder.

    Raises:
        Refused: `place` exists and is no empty folder, or lies in the vault's folder or among the keys.
        UsageError: the parent folder is missing.
    """
    real_path = place.parent.resolve() / place.name
    if any(real_path.is_relative_to(folder.resolve()) for folder in (root, paths.slots_dir())):
        raise Refused(
            "A kit or backup in the vault's folder or among its keys is lost with them. Choose another place."
        )
    if not place.parent.is_dir():
        raise UsageError(f"There is no folder {place.parent}. Make it, or choose another place.")
    if place.is_symlink() or place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise Refused(f"{place} exists already and is not overwritten. Choose another place.")


def _open_table(files: Files, root: Path, kit: Kit) -> KeyTable:
    """Open the key table at `root` with the kit."""
    header = vault_header.read_facts(files, root)[0]
    data = files.read(root / TABLE)
    epoch = numbers_of(container.read_header(data)[0])[0]
    keys = {epoch_name(epoch): kit.key_of(data)}
    return KeyTable.open(files, root / TABLE, KitKeys(keys, _lost_keystore(header, files)), header.id)


def _lost_keystore(header: Header, files: Files) -> Keystore | None:
    """Return the lost keystore for reading its notes, or None if it does not answer."""
    try:
        return vault_header.bare_keystore(header, files, rekey.slots_of(header.id))
    except KeystoreError:
        return None
