"""The JUnit document parses, counts right, and fails just where a setting is to be put back."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.parity.qualify.difference import Difference, shown
from lockstep.parity.qualify.junit import junit
from lockstep.parity.qualify.qualification import Qualification
from lockstep.parity.qualify.restore import restore


def suite(plant, causes, count=3, itself=True, **kwargs):
    trials = plant(count, causes, itself=itself)
    document = ET.fromstring(junit(Qualification(restore(trials.differences, trials.workload), **kwargs)))
    assert document.tag == "testsuites"
    (found,) = document
    assert dict(document.attrib).items() <= dict(found.attrib).items()
    return found


def outcomes(found) -> dict[str, str]:
    return {case.get("name"): case[0].tag if len(case) else "passed" for case in found.iter("testcase")}


class TestCases:
    def test_what_is_to_be_put_back_fails(self, plant):
        found = suite(plant, ["s01"])
        assert outcomes(found) == {"parity": "failure", "s00": "system-out", "s01": "failure", "s02": "system-out"}
        assert (found.get("tests"), found.get("failures"), found.get("errors")) == ("4", "2", "0")
        (failure,) = found.findall("testcase[@name='s01']/failure")
        assert failure.get("message") == "put back s01=old_s01; s01=new_s01 breaks parity"
        assert "nats of mean |log ratio| by itself (differs)" in failure.text

    def test_everything_passes_in_parity(self, plant):
        found = suite(plant, [])
        assert outcomes(found) == {"parity": "passed", **dict.fromkeys(["s00", "s01", "s02"], "system-out")}
        assert found.get("failures") == found.get("errors") == found.get("skipped") == "0"

    @pytest.mark.parametrize(
        ("causes", "itself", "kind"),
        [
            (lambda _: False, True, "failure"),
            (lambda _: None, True, "error"),
            ([], False, "error"),
            ([], None, "error"),
        ],
    )
    def test_settings_are_skipped_where_there_is_no_answer(self, plant, causes, itself, kind):
        found = suite(plant, causes, itself=itself)
        assert outcomes(found) == {"parity": kind, **dict.fromkeys(["s00", "s01", "s02"], "skipped")}
        assert found.get("skipped") == "3"
        assert found.get("errors") == str(int(kind == "error"))

    def test_a_member_not_seen_to_be_needed_is_not_said_to_break(self, plant):
        found = suite(plant, lambda kept: {0: False, 2: True}.get(len(kept)), count=2)
        messages = [failure.get("message") for failure in found.iter("failure")]
        assert messages[1:] == ["put back s00=old_s00", "put back s01=old_s01"]

    def test_facts_are_properties(self, plant):
        found = suite(plant, [], old="A", new="B", facts={"cores": "2"}, figures={"seconds": 1.5})
        told = {entry.get("name"): entry.get("value") for entry in found.iter("property")}
        assert told == {"old": "A", "new": "B", "cores": "2", "seconds": "1.5"}


class TestEscape:
    def test_hostile_names_are_kept_as_text(self, plant, hostile):
        trials = plant(len(hostile), ["s00"])
        differences = [Difference(text, text, 1) for text in sorted(hostile)]
        renamed = dict(zip(sorted(hostile), trials.names, strict=True))
        trials.count = len(hostile)
        workload = trials.workload
        found = restore(
            differences,
            type(workload)(lambda kept: trials.trial(frozenset(renamed[name] for name in kept)), workload.baseline),
        )
        facts = dict(zip(hostile, hostile, strict=True))
        document = ET.fromstring(junit(Qualification(found, hostile[0], hostile[5], facts)))
        assert [case.get("name") for case in document.iter("testcase")][1:] == [shown(t, 200) for t in sorted(hostile)]
        assert {child.tag for child in document.iter()} == {
            "testsuites", "testsuite", "properties", "property", "testcase", "failure", "system-out",
        }  # fmt: skip

    @given(st.text(), st.text())
    def test_any_label_parses(self, plant, old, new):
        assert suite(plant, ["s00"], 1, old=old, new=new, facts={old: new}).get("failures") == "2"
