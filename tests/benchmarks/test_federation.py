"""The federation benchmark without its runs: every point of the curve is `pretrain` with as many steps."""

import json
from pathlib import Path

import pytest

from benchmarks.federation.pretrain import CURVE, SHORT, Job, _refuse_other_terms
from fedmem.errors import UsageError
from fedmem.sim import scenario
from fedmem.sim.terms import steps_by_round


@pytest.mark.parametrize("point", CURVE)
def test_a_point_of_the_curve_has_the_scenarios_steps_in_other_rounds(point):
    chosen, job = scenario.load("pretrain"), Job(Path(), "pretrain", 0, point)
    assert sum(steps_by_round(job.terms().federation)) == sum(steps_by_round(chosen.federation))
    assert point == f"{job.terms().federation.rounds} rounds"
    assert scenario.from_dict(job.terms().to_dict()) == job.terms()
    assert Job(Path(), "pretrain", 0).terms() == chosen
    assert len({Job(Path(), "pretrain", 0, other).name for other in ("", point, SHORT)}) == 3


def test_a_quick_run_compares_as_many_steps_of_both():
    short, central = (Job(Path(), name, 0, SHORT).terms() for name in ("pretrain", "pretrain-central"))
    assert sum(steps_by_round(short.federation)) == central.cotrain.steps == 140
    assert all(scenario.from_dict(one.to_dict()) == one for one in (short, central))


def test_a_kept_run_of_other_terms_is_not_taken_for_one_of_now(tmp_path):
    job, other = Job(tmp_path, "pretrain", 0), Job(tmp_path, "pretrain", 0, SHORT)
    job.path.parent.mkdir(parents=True)
    for terms in (other.terms(), job.terms()):
        job.path.write_text(json.dumps({"config": terms.to_dict()}))
        if terms == other.terms():
            with pytest.raises(UsageError, match="other terms"):
                _refuse_other_terms(job)
    _refuse_other_terms(job)
