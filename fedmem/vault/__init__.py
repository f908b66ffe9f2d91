"""The vault: sealed records, private blocks and ledger of one subject on one device."""
