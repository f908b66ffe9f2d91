"""Backups and recovery kits of a vault: create, verify and restore them; check and repair a damaged vault."""
