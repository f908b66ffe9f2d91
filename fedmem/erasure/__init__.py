"""Erasure: plan, execute, verify, receipt.

from fedmem import erasure

planned = erasure.plan(vault, erasure.Scope.block("health"))
outcome = erasure.execute(vault, planned, planned.digest)
erasure.verify(vault, outcome.id).is_clean
"""

from fedmem.erasure import not_covered, openings, receipt, residue
from fedmem.erasure.engine import Outcome, Status, cancel, execute, resume, status
from fedmem.erasure.forgetting import Choice, Retrain, Retraining
from fedmem.erasure.journal import item_lines
from fedmem.erasure.planning import Plan, Scope, plan
from fedmem.erasure.verification import Verification, verify

__all__ = [
    "Choice",
    "Outcome",
    "Plan",
    "Retrain",
    "Retraining",
    "Scope",
    "Status",
    "Verification",
    "cancel",
    "execute",
    "item_lines",
    "not_covered",
    "openings",
    "plan",
    "receipt",
    "residue",
    "resume",
    "status",
    "verify",
]
