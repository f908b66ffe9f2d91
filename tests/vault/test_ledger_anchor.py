"""The head of the ledger in the keystore: a ledger that lost its end is noticed."""

from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from fedmem.errors import VerificationFailed
from fedmem.vault.crypto.key_table import RolledBack
from fedmem.vault.store import ledger_anchor
from fedmem.vault.store.ledger import chain
from tests.vault.test_ledger import SPEND, changed, forget_notes, learned

CUTS = {
    "missing": "DROP TABLE events",
    "emptied": "DELETE FROM events",
    "shortened": "DELETE FROM events WHERE seq >= 3",
    "shortened to a spend": "DELETE FROM events WHERE seq = 3",
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("again", ["the vault that is open", "a writer", "a reader"])
def test_what_was_cut_off_is_noticed(vaults, cut: str, again: str) -> None:
    vault = vaults.create()
    learned(vaults, vault)
    learned(vaults, vault, "digest-2")
    changed(vault, CUTS[cut])
    open_again = again != "the vault that is open"
    look = partial(vaults.reopen, vault, write=again == "a writer") if open_again else vault.ledger.events
    with pytest.raises(VerificationFailed, match="ledger"):
        look()


def test_a_missing_database_is_a_missing_ledger(vaults) -> None:
    vault = vaults.create()
    learned(vaults, vault)
    vault.close()
    (vault.root / "vault.db").unlink()
    with pytest.raises(VerificationFailed, match=r"database vault\.db is missing"):
        vaults.open()


def test_a_new_event_does_not_cover_up_a_cut(vaults) -> None:
    vault = vaults.create()
    learned(vaults, vault)
    noted = ledger_anchor.read_note(vault.core.keystore)
    changed(vault, "DELETE FROM events WHERE seq = 1")
    vault.begin_run(vaults.TOPIC, "release-1", {}, "digest-2", ["r1"], SPEND)  # takes the number that is free
    assert ledger_anchor.head(vault.core)[0] == noted[0]
    assert ledger_anchor.read_note(vault.core.keystore) == noted
    for look in (vault.ledger.events, lambda: vaults.reopen(vault)):
        with pytest.raises(RolledBack):
            look()


def rechained(vault: Any, order: list[int]) -> None:
    """Put the sealed events into another order and compute every digest anew; the digest has no key."""
    with vault.core.turn(), vault.core.database.session() as session:
        cells = [session.execute(text(f"SELECT sealed FROM events WHERE seq = {n}")).scalar_one() for n in order]
        session.execute(text("DELETE FROM events"))
        previous = ""
        for seq, sealed in enumerate(cells):
            previous = chain(previous, seq, sealed)
            row = {"seq": seq, "digest": previous, "sealed": sealed}
            session.execute(text("INSERT INTO events VALUES (:seq, :digest, :sealed)"), row)
    forget_notes(vault)
    ledger_anchor.write_note(vault.core)


def test_a_chain_computed_anew_does_not_help(vaults) -> None:
    for name, order in (("moved", [0, 2, 1]), ("doubled", [0, 1, 1]), ("left out", [0, 2])):
        vault = vaults.create(name)
        for number in range(3):
            vault.ledger.append("spend", {"n": number})
        ledger_anchor.write_note(vault.core)
        rechained(vault, [0, 1, 2])
        assert len(vault.ledger.events()) == 3
        rechained(vault, order)
        with pytest.raises(VerificationFailed):
            vault.ledger.events()
