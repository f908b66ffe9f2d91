"""Conversations of invented people."""

from typing import Any

LONG = "a sentence of this invented person that is long enough to be a record"


def message(sender: str, text: str, minute: int) -> dict[str, Any]:
    return {"sender": sender, "text": text, "timestamp": f"2018-01-01T00:{minute:02d}:00"}


def talk(start: str, *messages: dict[str, Any]) -> dict[str, Any]:
    return {"start": start, "messages": [[m] for m in messages], "prompt": "none", "ratings": {}}
