"""`fedmem privacy audit`: attack our own training function, and see whether the attack would notice if it were broken.

One run of `train_block` at a claimed epsilon of 2, on canaries each included by a fair coin, is attacked with all that
it releases (white box) and with its block alone (black box). Right guesses refute a small epsilon: the greatest that
they refute must stay below the claim. Then each planted bug is put in, and must be caught by the same audit, or else
by an exact test.

Invariants
- No vault of a user is opened: anchor, canaries, sentences and vaults are made for the audit.
- Coins, samples and noise come from one fresh 32-byte key; who does not hold it cannot foresee them.
- Every figure is measured now, on the code that is installed; nothing is remembered from another run.

    data = audit(canaries=1000)
    data["lower_bound"] < data["claimed"]
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fedmem.errors import UsageError
from fedmem.eval.exposed import leaks
from fedmem.eval.one_run import Ground, attacks
from fedmem.eval.planted import BUGS, EXACT, first_failed
from fedmem.privacy.audit import lower_bounds
from fedmem.privacy.plan import DELTA, PrivacyPlan
from fedmem.privacy.stream import KEY_BYTES, PrivacyStream

Progress = Callable[[str, int, int, str], None]
"""`(phase, done, total, note)`."""

EPSILON, CONFIDENCE, CAP = 2.0, 0.95, 10_000
CANARIES, QUICK, MOST = 1000, 500, 2000
"""As a rule; where a smaller audit will do; more than the rows of the block can tell apart."""
BITS = 3.0  # of exposure that training without noise must add, or the canaries show nothing


@dataclass(frozen=True)
class OneRun:
    """The public plan under audit, the canaries' ground, and the secret stream of coins and runs."""

    ground: Ground
    plan: PrivacyPlan
    stream: PrivacyStream

    def bounds(self, name: str) -> dict[str, float]:
        """Lower bounds on epsilon by attack, of one run of the mechanism as it stands now."""
        stream = self.stream.substream(name.encode())
        included_M = stream.substream(b"coins").bernoulli(len(self.ground.tokens_MT), 0.5)
        trace = self.ground.run(self.ground.canaries(included_M), self.plan, stream.substream(b"run"))
        scores = attacks(self.ground, self.plan, trace)
        return lower_bounds(scores, included_M, delta=self.plan.delta, confidence=CONFIDENCE)

    def exact(self) -> dict[str, bool]:
        """Which exact tests the mechanism as it stands now passes."""
        return {
            name: test(self.ground, self.plan, self.stream.substream(name.encode())) for name, test in EXACT.items()
        }

    def verdict(self, name: str, claimed: float) -> dict[str, Any]:
        """Whether the planted bug `name` is caught, by what, and the lower bound of the audit under it."""
        with BUGS[name](self.plan):
            found = max(self.bounds(name).values())
            by = "audit" if found > claimed else self._exact(name)
        return {"caught": by is not None, "by": by, "lower_bound": found}

    def _exact(self, name: str) -> str | None:
        failed = first_failed(self.ground, self.plan, self.stream.substream(b"exact-" + name.encode()))
        return f"exact: {failed}" if failed else None


def audited_plan(canaries: int) -> PrivacyPlan:
    """Eight steps on half the records: few enough that a sample can be decoded, several enough for streams to repeat.

    The clip norm is far below the canaries' gradients, so that each moves the sum as far as a record can.
    """
    rate = 0.5
    return PrivacyPlan(rate, 8, 0.01, 0.0, rate * canaries / 2, DELTA, CAP).calibrate(EPSILON)


def audit(canaries: int = CANARIES, key: bytes | None = None, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Everything that the command's envelope holds; `holds` says whether all of it is as it should be.

    `key` is for tests: whoever knows it knows coins and noise. Raises UsageError for fewer than 500 canaries, which
    cannot refute a claim of 2 with confidence, and for more than the block can tell apart.
    """
    if not QUICK <= canaries <= MOST:
        raise UsageError(f"An audit takes {QUICK} to {MOST} canaries.")
    torch.set_num_threads(1)  # how a sum is split among several was seen to change under load (I9)
    start, total = time.monotonic(), len(BUGS) + 2
    plan, stream = audited_plan(canaries), PrivacyStream(key or secrets.token_bytes(KEY_BYTES), b"audit")
    run, claimed = OneRun(Ground.new(canaries), plan, stream), plan.epsilon()
    progress("audit", 0, total, "the mechanism as it is")
    found, exact, planted = run.bounds("correct"), run.exact(), dict[str, Any]()
    for done, name in enumerate(BUGS, start=1):
        progress("audit", done, total, name)
        planted[name] = run.verdict(name, claimed)
    progress("audit", total - 1, total, "planted canaries")
    data = {
        "claimed": claimed,
        "lower_bound": max(found.values()),
        "white_box": max(value for name, value in found.items() if name.startswith("white")),
        "black_box": found["black_box"],
        "canaries": canaries,
        "confidence": CONFIDENCE,
        "delta": plan.delta,
        "plan": plan.to_dict(),
        "exact": exact,
        "planted": planted,
        **leaks(PrivacyPlan.small(record_cap=CAP).calibrate(EPSILON)),
    }
    progress("audit", total, total, "")
    return {**data, "holds": not failures(data), "seconds": round(time.monotonic() - start, 1)}


def failures(data: dict[str, Any]) -> list[str]:
    """What is not as it should be, in words; empty where all is."""
    exposure = data["exposure"]
    missed = [name for name, verdict in data["planted"].items() if not verdict["caught"]]
    inexact = [name for name, passed in data["exact"].items() if not passed]
    checks = {
        "the lower bound is above the claim": data["lower_bound"] > data["claimed"],
        f"exact tests fail: {', '.join(inexact)}": bool(inexact),
        f"planted bugs are not caught: {', '.join(missed)}": bool(missed),
        "canaries are not exposed without noise, so the audit shows nothing": exposure["after_non_dp"]
        < exposure["before"] + BITS,
        "an erased block still answers": exposure["after_erasure"] != exposure["before"] or not data["verified"],
    }
    return [words for words, wrong in checks.items() if wrong]
