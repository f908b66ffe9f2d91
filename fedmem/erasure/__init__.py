"""Erasure: plan, execute, verify, receipt.

from fedmem import erasure

planned = erasure.plan(vault, erasure.Scope.block("health"))
outcome = erasure.execute(vault, planned, planned.digest)
erasure.verify(vault, outcome.id).clean
"""

from fedmem.erasure import receipt, residue
from fedmem.erasure.engine import Outcome, Status, execute, resume, status
from fedmem.erasure.planning import Plan, Scope, plan
from fedmem.erasure.verification import Verification, verify

__all__ = [
    "Outcome",
    "Plan",
    "Scope",
    "Status",
    "Verification",
    "execute",
    "plan",
    "receipt",
    "residue",
    "resume",
    "status",
    "verify",
]
