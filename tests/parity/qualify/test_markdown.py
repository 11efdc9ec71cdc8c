"""The Markdown report has whole tables, and nothing in a name becomes markup."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.parity.qualify.difference import Difference
from lockstep.parity.qualify.markdown import code, markdown, text
from lockstep.parity.qualify.qualification import Qualification, label
from lockstep.parity.qualify.restore import restore


def cells(line: str) -> list[str]:
    """As GitHub splits a row: at pipes without a backslash."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def report(plant, texts=("a", "b", "c"), **kwargs) -> str:
    trials = plant(len(texts), ["s00"])
    differences = [Difference(name, value, value * 2) for name, value in zip(trials.names, texts, strict=True)]
    return markdown(Qualification(restore(differences, trials.workload), **kwargs))


def sections(page: str) -> dict[str, list[str]]:
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return {title: body.strip().splitlines() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


class TestReport:
    def test_begins_with_the_verdict(self, plant):
        lines = report(plant, old="vLLM 0.8.5", new="vLLM 0.18.1").splitlines()
        assert lines[0] == "# Qualification of vLLM 0.18.1 against vLLM 0.8.5"
        assert lines[2].startswith(
            "**Verdict:** `vLLM 0.18.1` differs from `vLLM 0.8.5`; restored by 1 setting: `s00=a` ("
        )
        assert lines[4].startswith("- None of these can be left out")

    def test_has_a_table_of_each_kind(self, plant):
        found = sections(report(plant, facts={"cores": "2"}, figures={"seconds": 1.25}))
        assert list(found) == ["Put back", "Settings that differ", "Trials", "Figures", "Machine and workload"]
        assert cells(found["Settings that differ"][2]) == ["`s00`", "`a`", "`aa`", "yes"]
        assert cells(found["Figures"][-1]) == ["seconds", "1.25"]

    def test_has_no_table_without_rows(self, plant):
        trials = plant(0, [])
        assert list(sections(markdown(Qualification(restore((), trials.workload))))) == ["Trials"]

    def test_every_row_has_as_many_cells_as_its_head(self, plant, hostile):
        facts = dict(zip(hostile, hostile, strict=True))
        for lines in sections(report(plant, hostile, facts=facts, old=hostile[0], new=hostile[4])).values():
            rows = [cells(line) for line in lines if line.startswith("|")]
            assert rows
            assert len({len(row) for row in rows}) == 1

    def test_hostile_texts_stay_text(self, plant, hostile):
        facts = dict(zip(hostile, hostile, strict=True))
        page = report(plant, hostile, facts=facts, old=hostile[0], new=hostile[3])
        outside = re.sub(r"`[^`\n]*`", "", page)
        assert "<script" not in outside
        assert "](" not in outside
        assert "<!--" not in outside
        assert "://" not in outside
        assert "www." not in outside
        assert set(re.findall(r"<[^>]*>", outside)) <= {"<code>", "</code>"}
        assert all(character.isprintable() or character == "\n" for character in page)


class TestText:
    @pytest.mark.parametrize("plain", ["0.0042 (differs)", "two words", "is it a setting?", "logprobs_mode", "2.13.0"])
    def test_ordinary_words_stay_readable(self, plain):
        assert text(plain) == plain

    @given(st.text())
    def test_reads_back_as_the_label(self, value):
        assert html.unescape(text(value).replace("\\|", "|")) == label(value)

    @given(st.text())
    def test_has_no_sign_that_means_something(self, value):
        rest = re.sub(r"&#\d+;", "", text(value).replace("\\|", ""))
        assert not re.search(r"[*`\[\]<>|~#\\!&$@{}^]", rest)
        assert not re.search(r"(^|[\W_])_|_([\W_]|$)", re.sub(r"&#\d+;", "x", text(value).replace("\\|", "x")))

    @given(st.text())
    def test_code_is_one_span_whatever_is_in_it(self, value):
        found = code(value)
        if found.startswith("`"):
            assert found.count("`") == 2
            assert "|" not in found
        else:
            assert found == f"<code>{text(value)}</code>"

    @pytest.mark.parametrize("value", ["1. x", "- x", "+ x", "=== x", "12) x"])
    def test_no_line_begins_a_list(self, value):
        assert not re.match(r"[-+=]|\d+[.)]\s", text(value))
