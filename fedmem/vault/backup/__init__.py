"""Copies of a vault and ways back: backups, recovery kits, restoring, checking and repairing."""
