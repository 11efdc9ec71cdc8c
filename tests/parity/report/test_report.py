from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.parity.breakdown import Breakdown
from lockstep.parity.evidence import Evidence, Finding
from lockstep.parity.floor import Floor
from lockstep.parity.observation import Statement
from lockstep.parity.report import AuditReport, page
from lockstep.parity.report.figures import HEIGHT, WIDTH, histogram, parts, positions

FIGURES = {"tokens": 4.0, "differing": 4.0, "mean": 0.5, "max": 1.0}
PARITY = Finding("parity", 1, figures={**FIGURES, "differing": 0.0})
FAULT = Finding("fault", 2, (Evidence("SEM01", "at temperature 0.7 raw", 0.99),), FIGURES, {"label": "not said"})


def report(*findings: Finding, **fields) -> AuditReport:
    said = (Statement("one", {"dtype": "bfloat16", "only": 1}), Statement("two", {"dtype": "float32"}))
    differences = [np.array([0.0, 1e-9, 0.5, -1.0])]
    return AuditReport("vllm:m", "trainer:m", findings, said, differences, **fields)


class Balance(HTMLParser):
    """Fails on a tag that is closed in another order than it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "line", "rect", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def balanced(text: str) -> bool:
    parser = Balance()
    parser.feed(text)
    return not parser.open


class TestVerdict:
    def test_a_fault_says_what_to_change(self):
        found = report(PARITY, FAULT)
        assert found.standing == "fault" and found.exit_code == 1
        assert found.verdict.startswith("SEM01") and "processed_logprobs" in found.verdict

    def test_parity_counts_tokens_and_updates(self):
        found = report(PARITY, PARITY, PARITY)
        assert found.exit_code == 0
        assert "12 tokens" in found.verdict and "3 steps, 2 weight updates" in found.verdict

    def test_an_audit_that_stopped_says_where_and_why(self):
        assert report(error="it died").verdict == "stopped before the first step: it died"
        found = report(PARITY, error="it died")
        assert found.verdict == "stopped after 1 steps in parity: it died"
        assert (found.standing, found.exit_code) == ("stopped", 2)

    def test_a_fault_that_was_found_before_it_stopped_stays_found(self):
        found = report(FAULT, error="it died")
        assert found.standing == "fault" and found.plain()["error"] == "it died"

    def test_undetermined_is_no_pass(self):
        found = report(Finding("undetermined", 1, figures=FIGURES))
        assert found.exit_code == 1 and found.verdict.startswith("undetermined")

    def test_nothing_at_all(self):
        assert report().verdict == "nothing was compared" and report().exit_code == 2


class TestPage:
    def test_it_holds_the_verdict_the_evidence_and_what_differs_first(self):
        text = page(report(FAULT, facts={"model": "m"}))
        assert "SEM01 (semantics)" in text and "at temperature 0.7 raw" in text and ">model<" in text
        assert text.index(">dtype<") < text.index(">only<"), "settings that differ come first"
        assert "not said" in text, "what was not looked at is said"
        assert balanced(text)

    @pytest.mark.parametrize("findings", [(), (PARITY,), (FAULT,), (Finding("undetermined", 1, figures=FIGURES),)])
    def test_every_standing_has_a_page(self, findings):
        assert balanced(page(report(*findings)))
        assert balanced(page(AuditReport("a", "b", findings)))

    def test_it_asks_nothing_of_a_network_and_runs_nothing(self):
        text = page(report(FAULT))
        assert "<script" not in text and not re.search(r"(src|href)=", text) and "default-src 'none'" in text

    @given(st.text(max_size=40))
    def test_hostile_text_stays_text(self, words):
        hostile = f"<script>{words}</script>\"'&"
        text = page(AuditReport(hostile, hostile, (Finding("fault", 1, (Evidence("SEM01", hostile),)),), error=hostile))
        assert "<script" not in text

    def test_breakdown_and_floor_are_tables(self):
        units = np.array([1 << 39, -(1 << 38)])
        floor = Floor.of([np.linspace(-0.01, 0.02, 5 + i) for i in range(12)])
        text = page(
            report(FAULT, breakdown=Breakdown(units, {"SEM01": units, "not explained": units * 0}), floor=floor)
        )
        assert str(int(units.sum())) in text and "offset" in text and "12 completions" in text


class TestFigures:
    def test_the_histogram_counts_every_token_once(self):
        bars = histogram([np.array([0.0, 1e-9, 1e-8, 0.5, -0.5]), np.array([3.0])])
        assert sum(int(bar.value) for bar in bars) == 6
        assert (bars[0].label, bars[0].value) == ("agree", "2")
        assert {bar.label: bar.value for bar in bars}["1e-1"] == "2"
        assert bars[-1].value == "0" and histogram([]) == []

    @given(st.lists(st.lists(st.floats(-100, 100), max_size=9), max_size=5))
    def test_bars_stay_inside(self, samples):
        for bar in histogram([np.array(one) for one in samples]):
            assert bar.x >= 0 and bar.x + bar.width <= WIDTH and 0 <= bar.y <= HEIGHT and bar.height <= HEIGHT + 1e-9

    def test_the_line_rises_where_differences_grow(self):
        line = positions([np.linspace(0, 1, 9), np.linspace(0, 1, 9)])
        heights = [float(point.split(",")[1]) for point in line.points.split()]
        assert heights == sorted(heights, reverse=True), "up is smaller"
        assert (line.largest, line.last) == (1.0, 9)

    def test_long_completions_are_averaged_to_few_points(self):
        line = positions([np.ones(1000)])
        assert len(line.points.split()) <= 48 and line.last == 1000

    def test_nothing_to_draw_is_no_line(self):
        assert positions([]) is None and positions([np.array([1.0])]) is None and positions([np.zeros(5)]) is None

    def test_parts_are_as_long_as_they_are_large(self):
        rows = [{"part": "a", "size": 0.5}, {"part": "b", "size": 1.0}, {"part": "c", "size": 0.0}]
        widths = [bar.width for bar in parts(rows)]
        assert widths[1] == 2 * widths[0] and widths[2] == 0
        assert [bar.width for bar in parts([{"part": "a", "size": 0.0}])] == [0]
