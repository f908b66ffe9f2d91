"""Public text that a release was never trained on, found by where the release lies.

Invariants
- Only text that its makers held out: of a simulation's run by its scenario and seed, of a `bank train` on the installed
  corpus by the corpus's own rule. Where neither is known, or the text is not here any more, there is none.
- A function of what lies in the folder and of the installed corpus; nothing private is generated.

    public = heldout_of(Path("runs/quickstart-0001/releases/DIGEST"))
"""

import contextlib
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from fedmem.coordinator.build import RESULT
from fedmem.errors import UsageError
from fedmem.policy.policy import Policy
from fedmem.sim import population, scenario
from fedmem.sim.folder import Facts, RunFolder, read_json
from fedmem.sim.sources.texts import WIKIPEDIA, public_texts
from fedmem.training.corpus import Corpus

MOST = 64
"""Texts at most, evenly drawn: a mean needs no more."""


def heldout_of(release: Path) -> list[str]:
    """Held-out public text of the release in this folder; an empty list where none is known."""
    out = release.resolve().parent.parent
    with contextlib.suppress(UsageError):  # a package or file that is not here any more
        if (out / RESULT).exists():
            return _thinned(_of_corpus(read_json(out / RESULT)["inputs"].get("corpus", "")))
        # A training keeps its inputs in a file of that name too.
        if (run := RunFolder(out)).known() and "scenario" in run.inputs():
            return _thinned(_of_run(run.inputs()))
    return []


def _of_run(inputs: Facts) -> list[str]:
    corpus = Path(inputs["corpus"]) if inputs["corpus"] else None
    # Private records have no part in the split of public ones, and take most of the time to write.
    chosen = replace(scenario.from_dict(inputs["scenario"]), private=[])
    return population.build(chosen, inputs["seed"], corpus, Policy.load()).heldout


def _of_corpus(digest: str) -> list[str]:
    corpus = Corpus.of(public_texts(WIKIPEDIA)[0])
    return list(corpus.heldout) if corpus.digest == digest else []


def _thinned(texts: list[str]) -> list[str]:
    if not texts:
        return []
    return [texts[n] for n in np.unique(np.linspace(0, len(texts) - 1, MOST).astype(np.int64))]
