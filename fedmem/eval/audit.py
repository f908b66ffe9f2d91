"""Run `fedmem privacy audit`: attack our own training function, and check that the attack notices broken code.

The audit trains once with `train_block` at a claimed epsilon of 2. A fair coin decides for each canary if it is
included. The run is attacked with everything that it releases (white box) and with its block alone (black box). Correct
guesses refute mechanisms with too much noise, and the greatest refuted epsilon must stay below the claim. Then each
planted bug is put in. The same audit or an exact test must catch it. At last the rounding attack reads the last bits of
updates, final blocks and federated parameters; it must find float noise there, and nothing else.

Invariants
- No vault of a user is opened: anchor, canaries, sentences and vaults are made for the audit.
- Coins, samples and noise come from one fresh 32-byte key. Without the key they cannot be predicted.
- Every figure is measured on the installed code; no result of another run is used.

    data = run_audit(canaries=1000)
    data["lower_bound"] < data["claimed"]
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fedmem.errors import UsageError
from fedmem.eval.exposed import measure_exposure
from fedmem.eval.one_run import AuditSetup, attacks
from fedmem.eval.planted import BUGS, EXACT, find_failed_test
from fedmem.eval.rounding_audit import is_failed, run_rounding
from fedmem.privacy.audit import claim_p_value, lower_bounds
from fedmem.privacy.plan import DELTA, PrivacyPlan
from fedmem.privacy.stream import KEY_BYTES, PrivacyStream

Progress = Callable[[str, int, int, str], None]
"""`(phase, done, total, note)`."""

METHOD = "f-DP in one run (Mahloujifar, Melis and Chaudhuri 2025)"
EPSILON, CONFIDENCE, CAP = 2.0, 0.95, 10_000
CANARIES, QUICK, MOST = 1000, 500, 2000
"""The usual number of canaries; the least; and the most, since the rows of the block cannot tell more apart."""
BITS = 3.0  # of exposure that training without noise must add, or the canaries prove nothing


@dataclass(frozen=True)
class OneRun:
    """One audited run.

    Attributes:
        setup: anchor, block and canaries.
        plan: the public settings of the training.
        stream: the secret stream of coins and noise.
    """

    setup: AuditSetup
    plan: PrivacyPlan
    stream: PrivacyStream

    def measure_bounds(self, name: str) -> tuple[dict[str, float], float]:
        """Train once with the mechanism as it is now, and attack the run.

        Args:
            name: the label of the run's random stream.

        Returns:
            The lower bound on epsilon of each attack, and the p-value of the claim.
        """
        stream = self.stream.substream(name.encode())
        included_M = stream.substream(b"coins").bernoulli(len(self.setup.tokens_MT), 0.5)
        trace = self.setup.run(self.setup.canaries(included_M), self.plan, stream.substream(b"run"))
        scores = attacks(self.setup, self.plan, trace)
        claim = self.plan.spend
        bounds = lower_bounds(scores, included_M, spend=claim, delta=self.plan.delta, confidence=CONFIDENCE)
        return bounds, claim_p_value(scores, included_M, claim)

    def run_exact_tests(self) -> dict[str, bool]:
        """Return for each exact test True if the mechanism passes it as it is now."""
        return {name: test(self.setup, self.plan, self.stream.substream(name.encode())) for name, test in EXACT.items()}

    def audit_bug(self, name: str, claimed: float) -> dict[str, Any]:
        """Audit the mechanism with a planted bug.

        Args:
            name: a key of BUGS.
            claimed: the epsilon that the bug must exceed to be caught by the audit.

        Returns:
            `caught`, `by` (`audit`, `exact: <test>` or None), the `lower_bound` of the audit, and the `p_value` of the
            claim.
        """
        with BUGS[name](self.plan):
            bounds, p_value = self.measure_bounds(name)
            lower_bound = max(bounds.values())
            by = "audit" if lower_bound > claimed else self._failed_exact_test(name)
        return {"caught": by is not None, "by": by, "lower_bound": lower_bound, "p_value": p_value}

    def _failed_exact_test(self, name: str) -> str | None:
        failed = find_failed_test(self.setup, self.plan, self.stream.substream(b"exact-" + name.encode()))
        return f"exact: {failed}" if failed else None


def audited_plan(canaries: int) -> PrivacyPlan:
    """Return the plan under audit, calibrated to the claimed epsilon of 2.

    Eight steps on half of the records: a sample can still be decoded, and a repeated stream shows. The clip norm is far
    below the norms of the canaries' gradients, so each canary moves the sum as far as a record can.

    Args:
        canaries: number of canaries.
    """
    rate = 0.5
    return PrivacyPlan(rate, 8, 0.01, 0.0, rate * canaries / 2, DELTA, CAP).calibrate(EPSILON)


def run_audit(
    canaries: int = CANARIES, key: bytes | None = None, progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Run the audit.

    Args:
        canaries: number of canaries, 500 to 2000. Fewer cannot refute a claim of 2 with confidence, and the block
            cannot tell more of them apart.
        key: 32 bytes that decide coins and noise, for tests only; None for a fresh key.
        progress: is called with (phase, done, total, note).

    Returns:
        The data of the command's JSON envelope. `holds` is True if `failures` finds nothing.

    Raises:
        UsageError: the number of canaries is not in the range.
        QualityGateFailed: a training step could not be watched.
    """
    if not QUICK <= canaries <= MOST:
        raise UsageError(f"An audit takes {QUICK} to {MOST} canaries.")
    torch.set_num_threads(1)  # with several threads, sums differed under load (I9)
    start, total = time.monotonic(), len(BUGS) + 3
    plan, stream = audited_plan(canaries), PrivacyStream(key or secrets.token_bytes(KEY_BYTES), b"audit")
    run, claimed = OneRun(AuditSetup.new(canaries), plan, stream), plan.epsilon()
    progress("audit", 0, total, "the mechanism as it is")
    (bounds, p_value), exact, planted = run.measure_bounds("correct"), run.run_exact_tests(), dict[str, Any]()
    for done, name in enumerate(BUGS, start=1):
        progress("audit", done, total, name)
        planted[name] = run.audit_bug(name, claimed)
    progress("audit", total - 2, total, "last bits")
    rounding = run_rounding(run.setup, stream.substream(b"rounding"))
    progress("audit", total - 1, total, "planted canaries")
    data = {
        "claimed": claimed,
        "lower_bound": max(bounds.values()),
        "white_box": max(value for name, value in bounds.items() if name.startswith("white")),
        "black_box": bounds["black_box"],
        "attacks": bounds,
        "p_value": p_value,
        "method": METHOD,
        "canaries": canaries,
        "confidence": CONFIDENCE,
        "delta": plan.delta,
        "plan": plan.to_dict(),
        "exact": exact,
        "planted": planted,
        "rounding": rounding,
        **measure_exposure(PrivacyPlan.small(record_cap=CAP).calibrate(EPSILON)),
    }
    progress("audit", total, total, "")
    return {**data, "holds": not failures(data), "seconds": round(time.monotonic() - start, 1)}


def failures(data: dict[str, Any]) -> list[str]:
    """Return a sentence for each check that failed.

    Args:
        data: the result of `run_audit`.
    """
    exposure = data["exposure"]
    missed = [name for name, verdict in data["planted"].items() if not verdict["caught"]]
    inexact = [name for name, passed in data["exact"].items() if not passed]
    telling = [name for name, place in data["rounding"].items() if is_failed(place)]
    blind = [name for name, place in data["rounding"].items() if not place["planted_caught"]]
    checks = {
        "the lower bound is above the claim": data["lower_bound"] > data["claimed"],
        f"exact tests fail: {', '.join(inexact)}": bool(inexact),
        f"planted bugs are not caught: {', '.join(missed)}": bool(missed),
        f"last bits tell who took part: {', '.join(telling)}": bool(telling),
        f"the rounding attack does not find float noise: {', '.join(blind)}": bool(blind),
        "canaries are not exposed without noise, so the audit shows nothing": exposure["after_non_dp"]
        < exposure["before"] + BITS,
        "an erased block still answers": exposure["after_erasure"] != exposure["before"] or not data["verified"],
    }
    return [words for words, has_failed in checks.items() if has_failed]
