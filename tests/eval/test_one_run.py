"""The audited run: it is the learner's, every step is seen, and an attack sees the release alone."""

from functools import cache

import numpy as np
import pytest
import torch
from torch.optim.optimizer import _global_optimizer_pre_hooks

from fedmem.errors import QualityGateFailed
from fedmem.eval import one_run
from fedmem.eval.one_run import AuditSetup, attacks
from fedmem.privacy.dpsgd import train_block
from fedmem.privacy.gradients import RuntimeOptions
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

KEY = bytes(range(32))
FEW = 120
PLAN = PrivacyPlan(0.5, 8, 0.01, 3.13, 30.0, 1e-5, 1000)  # epsilon 2


def stream(label=b"audit"):
    return PrivacyStream(KEY, label)


@cache
def audit_setup():
    return AuditSetup.new(FEW)


def test_watching_changes_nothing_and_sees_every_step():
    of, data = audit_setup(), audit_setup().canaries(np.arange(FEW) < 20)
    trace = of.run(data, PLAN, stream())
    plain = train_block(of.model, of.memory, of.spec, of.start_X, data, PLAN, stream(), runtime=RuntimeOptions(64))
    assert torch.equal(trace.end_X, plain)
    assert torch.equal(trace.blocks_SX[0], of.start_X)
    assert len(trace.blocks_SX) == len(trace.updates_SX) == PLAN.steps
    assert not torch.equal(trace.blocks_SX[1], of.start_X)
    assert not _global_optimizer_pre_hooks


def test_a_step_that_is_not_seen_ends_the_audit(monkeypatch):
    monkeypatch.setattr(one_run, "train_block", lambda *_, **__: torch.zeros(1))
    with pytest.raises(QualityGateFailed, match="0 updates of 8 steps"):
        audit_setup().run(audit_setup().canaries(np.ones(FEW, bool)), PLAN, stream())


def test_an_attack_reads_the_release_alone():
    """Another set of canaries with the same trace gives the same scores: no coin goes in beside it."""
    trace = audit_setup().run(audit_setup().canaries(np.arange(FEW) % 2 == 0), PLAN, stream())
    found, again = attacks(audit_setup(), PLAN, trace), attacks(AuditSetup.new(FEW), PLAN, trace)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert set(found) == {"white_box_product", "white_box_decoded", "black_box"}
