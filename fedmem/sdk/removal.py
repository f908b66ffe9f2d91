"""Remove an empty vault: its folder, its keys and its runtime folder. An erasure of the whole subject comes before it.

Invariants
- A vault with any content, an unfinished erasure or an undelivered opening is refused. So is one with foreign files.
- Receipts, public keys and lists of erased items are copied out first, durably: they exist only once.
- The file `removing` marks a removal that has begun. After a crash the same call completes it, although the keys may be
  destroyed already.

    remove(root, Path("evidence"), subject="ana", ask=None)
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmem.erasure import item_lines, openings, status
from fedmem.erasure.states import COMPLETED, UNFINISHED
from fedmem.errors import Busy, KeystoreError, Refused
from fedmem.storage.files import Files
from fedmem.storage.locks import WriterLock
from fedmem.vault.crypto import vault_header
from fedmem.vault.crypto.device_key import DEVICE_KEY
from fedmem.vault.crypto.key_table import LOG
from fedmem.vault.crypto.keystore import Ask, KeyfileKeys
from fedmem.vault.crypto.rekey import slots_of
from fedmem.vault.crypto.sealed_table import backup_name, epoch_name, numbers_of
from fedmem.vault.opening import TABLE, TIMEOUT, table_header
from fedmem.vault.store.core import take_writer_lock
from fedmem.vault.store.leases import stale_readers
from fedmem.vault.vault import ALL, Vault

__all__ = ["Removed", "remove"]
MARK = "removing"
_FILES_OF_FOLDER = re.compile(
    r"[0-9a-f]{32}(\.dsse\.json|\.items|\.fmb|\.fmc)|[0-9a-f]{64}\.pub|.*\.tmp|[0-9]+-[0-9a-f]{32}"
)


@dataclass(frozen=True)
class Removed:
    """The result of a removal.

    Attributes:
        vault: Id of the vault; "" if an earlier call had removed it up to the folder.
        evidence: Names of the files that were copied out.
    """

    vault: str
    evidence: tuple[str, ...]


def remove(root: Path, evidence: Path, *, subject: str, ask: Ask | None = None, files: Files | None = None) -> Removed:
    """Remove the vault at `root` with its keys, after everything in it was erased.

    Args:
        root: Folder of the vault.
        evidence: Folder for the receipts, the public keys and the lists of erased items. It is new or empty.
        subject: Subject of the vault.
        ask: Returns the passphrase, if the keystore needs one.
        files: The file layer.

    Raises:
        Refused: The vault still holds something, or a file that is not its own, or `evidence` is not empty.
        Busy: Another program uses the vault.
        NothingMatched: There is no vault.
        StorageError, KeystoreError: The removal is not complete; the same call completes it.
    """
    files = files or Files()
    if (root / MARK).is_file() and not (root / TABLE).is_file():  # an earlier call destroyed the keys and got this far
        _remove_folder(files, root)
        return Removed("", ())
    header, names = vault_header.read_facts(files, root)[0], tuple[str, ...]()
    checked_table = list[str]()
    try:
        with Vault.open(root, subject=subject, ask=ask, files=files) as vault, vault.core.writing():
            _check(vault)
            names = _save_evidence(vault, evidence)
            files.replace(root / MARK, b"")
        checked_table = _table_digests(files, root)
    except KeystoreError:
        if not _has_lost_keys(files, root, header):
            raise
    lock = take_writer_lock(root, TIMEOUT)
    try:
        if checked_table and _table_digests(files, root) != checked_table:
            raise Refused("Another program changed the vault meanwhile. Nothing was removed; look into it again.")
        if stale_readers(root / "leases", sys.maxsize):
            raise Busy("Another program has the vault open. Close it, and repeat the command; nothing was removed.")
        _remove_runtime_folder(files, root)
        _destroy_keys(files, root, header)
        _remove_folder(files, root)
    finally:
        lock.release()
    return Removed(header.id, names)


def _table_digests(files: Files, root: Path) -> list[str]:
    return [files.digest(root / name) for name in (TABLE, LOG) if (root / name).exists()]


def _has_lost_keys(files: Files, root: Path, header: vault_header.Header) -> bool:
    """Return True if an earlier call has marked the vault as removed, and has destroyed its epoch key."""
    name = epoch_name(numbers_of(table_header(files, root))[0])
    keystore = vault_header.bare_keystore(header, files, slots_of(header.id))
    if isinstance(keystore, KeyfileKeys):  # a crash may leave a slot of zeros
        with contextlib.suppress(KeystoreError):
            return not keystore.slot(name)
        return (root / MARK).is_file()
    return (root / MARK).is_file() and not keystore.exists(name)


def _check(vault: Vault) -> None:
    """Check that nothing would be lost. Raises Refused."""
    erasures = status(vault)
    if vault.ids_of(ALL) or not any(entry.state == COMPLETED for entry in erasures):
        raise Refused(
            "This vault still holds content, or nothing was ever erased from it. Erase everything first: "
            "`fedmem erase plan --whole-subject`."
        )
    if any(entry.state in UNFINISHED for entry in erasures):
        raise Refused("An erasure of this vault is not finished. Run `fedmem erase resume` first.")
    waiting = [entry.id for entry in erasures if entry.opening == openings.WAITING]
    if waiting:
        raise Refused(f"The vault keeps an opening. Get it first: `fedmem receipt opening {waiting[0]}`.")
    foreign = sorted(_foreign_files(vault.root))
    if foreign:
        raise Refused(f"The vault's folder holds a file that is not its own: {foreign[0]}. Move it out first.")


def _foreign_files(root: Path) -> Iterator[str]:
    for folder in (path for path in root.iterdir() if path.is_dir()):
        for path in folder.iterdir():
            if path.is_dir() or not _FILES_OF_FOLDER.fullmatch(path.name):
                yield f"{folder.name}/{path.name}"


def _save_evidence(vault: Vault, place: Path) -> tuple[str, ...]:
    """Copy receipts and public keys, and write the lists of erased items, into a new or empty folder."""
    files = vault.core.files
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise Refused(f"{place} is not empty, and nothing in it is overwritten. Name a new or empty folder.")
    if place.resolve().is_relative_to(vault.root.resolve()):
        raise Refused("The folder of the evidence lies in the vault's folder, which is removed. Name another one.")
    files.make_folder(place)
    sources = [vault.root / "device.pub", *(vault.root / "receipts").glob("*.dsse.json")]
    for source in [*sources, *(vault.root / "receipts").glob("*.pub")]:
        files.copy(source, place / source.name)
    for entry in status(vault):
        if entry.state == COMPLETED:
            files.replace(place / f"{entry.id}.list", b"\n".join(item_lines(vault, entry.id)) + b"\n")
    files.sync_folder(place)
    return tuple(sorted(path.name for path in place.iterdir()))


def _destroy_keys(files: Files, root: Path, header: vault_header.Header) -> None:
    """Destroy every key of the vault in its keystore, and remove the folder of its slots."""
    epoch, generation, _ = numbers_of(table_header(files, root))
    epochs = [epoch_name(number) for number in range(max(1, epoch - 1), epoch + 2)]
    backups = [backup_name(number) for number in range(max(0, generation - 1), generation + 1)]
    keystore = vault_header.bare_keystore(header, files, slots_of(header.id))
    keystore.destroy(epoch_name(epoch))  # first: its absence shows that the removal has begun
    keystore.discard([DEVICE_KEY, *epochs, *backups])
    files.remove_folder(slots_of(header.id))


def _remove_folder(files: Files, root: Path) -> None:
    """Remove the vault's folder: the key table first and the mark last, so that a further call knows how far it got."""
    files.unlink(root / TABLE)
    files.sync_folder(root)
    for path in sorted(root.iterdir()):
        if path.is_dir():
            files.remove_folder(path)
        elif path.name != MARK:
            files.unlink(path)
    files.sync_folder(root)
    files.remove_folder(root)


def _remove_runtime_folder(files: Files, root: Path) -> None:
    """Remove the folder of the vault process's socket. Raises Busy if that process runs."""
    from fedmem.device.runtime_folder import place

    folder = place(root)
    if folder.is_dir():
        lock = WriterLock(folder / "lock", "device's runtime folder")
        try:
            files.remove_folder(folder)
        finally:
            lock.release()
