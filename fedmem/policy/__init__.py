"""Placement: which rules make a record private, and under which topic and budget."""
