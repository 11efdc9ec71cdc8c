from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from lockstep.adapters.engines.audit import Audit
from lockstep.adapters.engines.opening import opened
from lockstep.adapters.engines.spec import parse
from lockstep.adapters.engines.workload import Workload
from lockstep.core import SamplingParams
from lockstep.errors import InputError, StageError

PARAMS = SamplingParams(temperature=0.8, max_tokens=8, n=4, ignore_eos=True)


def audited(publisher, tmp_path, engine: str, scorer: str, params=PARAMS, steps=2) -> Audit:
    with ExitStack() as stack:
        sides = [
            opened(parse(f"{one.replace(':', ':tiny', 1)}"), publisher, stack, tmp_path, print)
            for one in (engine, scorer)
        ]
        audit = Audit(sides[0], sides[1], publisher, Workload(params, prompts=3, steps=steps))
        for _ in audit.run():
            pass
        return audit


def ours(publisher, stack, tmp_path):
    return [opened(parse(f"{kind}:tiny"), publisher, stack, tmp_path, print) for kind in ("engine", "trainer")]


def codes(audit: Audit) -> list[str | None]:
    return [finding.code for finding in audit.findings]


def test_our_engine_and_our_trainer_are_in_parity_through_updates(publisher, tmp_path):
    audit = audited(publisher, tmp_path, "engine:", "trainer:", steps=3)
    report = audit.report("engine:tiny", "trainer:tiny", {"machine": "this"})
    assert [finding.status for finding in audit.findings] == ["parity"] * 3
    assert report.exit_code == 0 and not any(d.any() for d in report.differences)
    assert publisher.newest == 2 and report.facts["machine"] == "this" and report.facts["steps"] == 3


def test_two_implementations_are_in_parity_within_the_measured_floor(publisher, tmp_path):
    audit = audited(publisher, tmp_path, "engine:", "transformers:")
    assert codes(audit) == [None, None]
    assert any(finding.figures["max"] > 0 for finding in audit.findings), "they are two implementations"
    assert audit.floor is not None and audit.floor.num_samples == 4 * 12


def test_in_float32_the_floor_is_that_of_float32(publisher, tmp_path):
    fine = audited(publisher, tmp_path, "engine:,dtype=float32", "transformers:,dtype=float32", steps=1)
    assert codes(fine) == [None]
    assert 0 < fine.floor.grain < 1e-5 and fine.findings[0].figures["max"] < 1e-4


def test_truncation_that_the_scorer_ignores_is_sem03(publisher, tmp_path):
    params = SamplingParams(temperature=0.8, top_p=0.7, max_tokens=8, n=4, ignore_eos=True)
    audit = audited(publisher, tmp_path, "engine:", "transformers:", params, steps=1)
    assert codes(audit) == ["SEM03"]
    breakdown = audit.report("a", "b", {}).breakdown
    summed = sum(row["units"] for row in breakdown.rows()[:-1])
    assert summed == breakdown.rows()[-1]["units"] != 0


def test_a_lost_update_is_wgt01_at_the_first_step_that_it_touches(publisher, tmp_path):
    audit = audited(publisher, tmp_path, "engine:,weights=lost", "trainer:", steps=3)
    assert codes(audit) == [None, "WGT01"], "it stops at the first fault"


def test_keys_of_older_weights_are_cac01(publisher, tmp_path):
    audit = audited(publisher, tmp_path, "engine:,prefix_cache=keep", "trainer:", steps=3)
    assert codes(audit)[:2] == [None, "CAC01"]
    assert audit.observations[1].samples[0].num_cached != 0


def test_a_scorer_cannot_draw(publisher, tmp_path):
    with pytest.raises(InputError, match="it draws the tokens"):
        audited(publisher, tmp_path, "trainer:", "trainer:")


def test_what_fails_on_the_way_leaves_a_report_of_what_was_seen(publisher, tmp_path):
    with ExitStack() as stack:
        engine, scorer = (
            opened(parse(f"{kind}:tiny"), publisher, stack, tmp_path, print) for kind in ("engine", "trainer")
        )
        audit = Audit(engine, scorer, publisher, Workload(PARAMS, prompts=3, steps=3))
        run = audit.run()
        next(run)

        def gone(_):
            raise StageError("the peer is gone")

        scorer.score = gone
        with pytest.raises(StageError):
            next(run)
        report = audit.report("engine:tiny", "trainer:tiny", {}, "the peer is gone")
    assert report.standing == "stopped" and len(report.findings) == 1
    assert report.verdict == "stopped after 1 steps in parity: the peer is gone"


def test_a_series_with_a_hole_is_no_parity(publisher, tmp_path):
    with ExitStack() as stack:
        engine, scorer = (
            opened(parse(f"{kind}:tiny"), publisher, stack, tmp_path, print) for kind in ("engine", "trainer")
        )
        honest = scorer.score

        def holed(samples):
            series = honest(samples)
            series[0] = np.where(np.arange(len(series[0])) == 2, np.nan, series[0]).astype(np.float32)
            return series

        scorer.score = holed
        audit = Audit(engine, scorer, publisher, Workload(PARAMS, prompts=3, steps=1))
        assert [finding.status for finding in audit.run()] == ["undetermined"]
