"""A finding in words: one line that says what and what to change, and plain values that a file can hold."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.parity.auditor import Auditor
from lockstep.parity.catalogue import CATALOGUE
from lockstep.parity.evidence import Evidence, Finding
from lockstep.parity.fault import Layer
from lockstep.parity.probe import Look
from lockstep.parity.verdict import plain, verdict
from lockstep.trace.metrics import encode_line

FIGURES = {"tokens": 192.0, "differing": 7.0, "mean": 0.012345, "max": 0.5}
NAN = float("nan")


def fault(code: str, *more: Evidence) -> Finding:
    return Finding("fault", 3, (Evidence(code, "seen here", 0.75), *more), FIGURES, {"versions": "no reference"})


class TestWords:
    def test_parity_says_how_much_was_compared(self):
        assert verdict(Finding("parity", 1, figures=FIGURES)).startswith("parity: 192 tokens compared")

    @pytest.mark.parametrize("figures", [{}, {"tokens": 0.0, "differing": NAN, "mean": NAN, "max": NAN}])
    def test_parity_of_nothing_claims_no_comparison(self, figures: dict[str, float]):
        assert "none was compared" in verdict(Finding("parity", 1, figures=figures))

    def test_undetermined_gives_the_size_of_what_nobody_explains(self):
        assert verdict(Finding("undetermined", 1, figures=FIGURES)) == (
            "undetermined: 7 of 192 tokens differ, by 0.0123 nats on average, 0.5 at most, and no cause explains it"
        )

    def test_evidence_without_a_verdict_does_not_name_a_cause(self):
        weak = Finding("undetermined", 1, (Evidence("SEM01", "seen here", 0.3),), FIGURES)
        assert "SEM01" not in verdict(weak)

    @pytest.mark.parametrize("code", CATALOGUE)
    def test_every_fault_has_one_line_with_its_cause_and_what_to_change(self, code: str):
        said = verdict(fault(code))
        assert said.startswith(f"{code} ({Layer.of(code)}): {CATALOGUE[code].title} - seen here. To mend it: ")
        assert said.endswith(CATALOGUE[code].setting)
        assert "\n" not in said

    def test_what_decided_is_what_is_said(self):
        said = verdict(fault("WGT01", Evidence("CAC01", "not this", 0.99)))
        assert said.startswith("WGT01 (weights)")
        assert "not this" not in said


class TestFinding:
    @pytest.mark.parametrize("status", ["parity", "undetermined"])
    def test_only_a_fault_has_a_code(self, status):
        finding = Finding(status, 1, (Evidence("SEM01", "", 0.3),))
        assert (finding.code, finding.layer) == (None, None)
        assert (plain(finding)["code"], plain(finding)["layer"], plain(finding)["setting"]) == (None, None, None)

    @pytest.mark.parametrize("code", CATALOGUE)
    def test_the_layer_is_that_of_the_first_evidence(self, code: str):
        assert fault(code, Evidence("OBJ03", "")).layer is CATALOGUE[code].layer

    def test_a_code_of_no_layer_is_refused(self):
        with pytest.raises(KeyError):
            _ = Evidence("XYZ01", "").layer

    def test_layers_are_looked_at_in_their_order(self):
        ranks = [Evidence(code, "").layer.rank for code in CATALOGUE]
        assert ranks == sorted(ranks)
        assert set(ranks) == set(range(len(Layer)))


class TestPlain:
    def test_all_of_it_is_there(self):
        finding = fault("WGT02", Evidence("CAC01", "keys", 0.5, True, {"cached": 3}))
        assert plain(finding) == {
            "status": "fault",
            "step": 3,
            "code": "WGT02",
            "layer": "weights",
            "setting": CATALOGUE["WGT02"].setting,
            "verdict": verdict(finding),
            "figures": FIGURES,
            "evidence": [
                {"code": "WGT02", "why": "seen here", "explained": 0.75, "certain": False, "figures": {}}
                | {"layer": "weights"},
                {"code": "CAC01", "why": "keys", "explained": 0.5, "certain": True, "figures": {"cached": 3}}
                | {"layer": "cache"},
            ],
            "skipped": {"versions": "no reference"},
        }

    def test_it_is_a_copy(self):
        figures = {"tokens": [1, 2]}
        finding = Finding("fault", 1, (Evidence("WGT02", "", figures=figures),), FIGURES)
        plain(finding)["evidence"][0]["figures"]["tokens"].append(3)
        plain(finding)["figures"]["tokens"] = 0
        assert figures == {"tokens": [1, 2]}
        assert finding.figures["tokens"] == 192.0

    @given(
        st.sampled_from(sorted(CATALOGUE)),
        st.floats(-1, 1),
        st.booleans(),
        st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers())),
    )
    def test_it_survives_json(self, code, share, certain, figures):
        finding = Finding("fault", 1, (Evidence(code, "", share, certain, figures),), FIGURES)
        assert json.loads(json.dumps(plain(finding))) == plain(finding)

    @pytest.mark.parametrize("code", ["WGT02", "NUM06", "OBJ02"])
    def test_what_real_probes_found_survives_it_too(self, code: str, recorded: Callable[..., Look]):
        look = recorded(code, exact=True, prompts=2, prefix=18, tail=4)
        auditor = Auditor(look.reference)
        for seen in look.before:
            auditor.look(seen)
        told = plain(auditor.look(look.observation))
        assert told["code"] == code
        assert json.loads(json.dumps(told)) == told
        assert json.loads(encode_line(told))["code"] == code
