"""The store of a vault: database, items, ledgers, leases, and the rules that keep them consistent."""
