"""Placement: the rules that make a record private, and the topic and budget that it gets."""
