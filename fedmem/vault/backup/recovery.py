"""Recovery kits: a file and a code that open a vault whose keystore is lost. Their format is that of `kits`.

Invariants
- The epoch key is sealed to the kit's public key in the table's header, so the kit opens each new epoch without being
  at hand, until an erasure or `rotate` leaves it out: from then on it opens nothing that was written later.
- A kit together with a copy of the vault or a backup of its own time goes on opening that copy, so an erasure removes
  the kits in reach and names the others in `not_covered`.
- Restoring puts the keys into a new set of slots of the backend that was chosen; a crash leaves old or new state.
- An older version of the vault is not restored where the notes of the keystore are left: RolledBack.

    kit_id, code = create(vault, Path("/media/stick/kit"), show=print)     # the code, once
    restore(root, file, code, subject="ana", keystore="keyring")
"""

import hmac
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedmem import paths
from fedmem.errors import KeystoreError, Refused, UsageError, VerificationFailed
from fedmem.storage.files import Files
from fedmem.storage.ids import new_id
from fedmem.storage.locks import WriterLock
from fedmem.vault.backup import backup_registry as copies
from fedmem.vault.backup.recovery_kit import CODE_BYTES, GivenKeys, Kit, encode, opened, spell
from fedmem.vault.crypto import container, rekey
from fedmem.vault.crypto import header as public
from fedmem.vault.crypto import hpke as recipients
from fedmem.vault.crypto.header import Header
from fedmem.vault.crypto.key_table import KeyTable, epoch_name, numbers_of
from fedmem.vault.crypto.keystore import Ask, Keystore
from fedmem.vault.opening import DEVICE_KEY, check_sealed, public_pem
from fedmem.vault.vault import Vault

MOST = 8  # kits that hold at once; the header of the table has room for no more than a few


def create(vault: Vault, place: Path, show: Callable[[str], None] = lambda code: None) -> tuple[str, str]:
    """Write a kit to the new file `place`; (its id, its code).

    Args:
        show: gives the code to the person, before there is a kit: if it raises, nothing was made.

    Raises Refused where the file exists, lies in the vault or beside its keys, or too many kits hold.
    """
    core, place = vault.core, place.absolute()
    kits = core.table.facts.get("kits", {})
    check_place(vault.root, place)
    if len(kits) >= MOST:
        raise Refused(f"{MOST} recovery kits hold already. `fedmem keys rotate` retires them all; then make a new one.")
    kit, code, key = new_id(), secrets.token_bytes(CODE_BYTES), X25519PrivateKey.generate()
    show(spell(code))
    with core.writing():
        copies.register(core, kit, copies.KIT, place)
        core.files.replace(place, encode(vault.id, kit, code, key, core.keystore.load(DEVICE_KEY)))
        # From here on the kit opens the vault.
        core.table.rewrite(facts={**core.table.facts, "kits": {**kits, kit: recipients.public_of(key)}})
    return kit, spell(code)


def check(root: Path, file: bytes, code: str, files: Files | None = None) -> Kit:
    """The kit, if it and the code open the vault at `root` as it is now. Changes nothing. Raises as the module says."""
    kit = opened(file, code)
    _table(files or Files(), root, kit)
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
) -> Kit:
    """Put the vault's keys into a new set of slots of the backend `keystore`, in place of the lost ones.

    Raises Busy, Refused (another vault or subject), KeystoreError, VerificationFailed, StorageError.
    """
    files, kit = files or Files(), opened(file, code)
    lock = WriterLock(root / "lock")
    try:
        known, data = public.read_facts(files, root)
        table = _table(files, root, kit)
        check_sealed(table, data, subject)
        if not hmac.compare_digest(files.read(root / "device.pub"), public_pem(kit.device)):
            raise VerificationFailed("The vault's public key is not that of the kit. Restore device.pub from a backup.")
        rekey.finish_move(files, root, table)
        known = public.read_facts(files, root)[0]
        rekey.renew(files, root, table, known, keystore, ask, lost=True)
    finally:
        lock.release()
    return kit


def check_place(root: Path, place: Path) -> None:
    """Refuse a place for a kit or backup that exists, or that lies with the vault or its keys."""
    real = place.parent.resolve() / place.name
    if any(real.is_relative_to(folder.resolve()) for folder in (root, paths.slots_dir())):
        raise Refused(
            "A kit or backup in the vault's folder or among its keys is lost with them. Choose another place."
        )
    if not place.parent.is_dir():
        raise UsageError(f"There is no folder {place.parent}. Make it, or choose another place.")
    if place.is_symlink() or place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise Refused(f"{place} exists already, and nothing is written over. Choose another place.")


def _table(files: Files, root: Path, kit: Kit) -> KeyTable:
    """The table at `root`, opened by the kit."""
    known = public.read_facts(files, root)[0]
    data = files.read(root / "table.fmk")
    epoch = numbers_of(container.read_header(data)[0])[0]
    keys = {epoch_name(epoch): kit.key_of(data), DEVICE_KEY: kit.device}
    return KeyTable.open(files, root / "table.fmk", GivenKeys(keys, notes_of(known, files)), known.id)


def notes_of(known: Header, files: Files) -> Keystore | None:
    """What is left of a keystore, for its notes; None where it does not answer."""
    try:
        return public.bare_keystore(known, files, rekey.slots_of(known.id))
    except KeystoreError:
        return None
