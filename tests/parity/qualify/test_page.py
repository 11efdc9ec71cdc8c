"""The page is one well-formed file that asks nothing of others, shows both colour schemes, and keeps text as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from lockstep.parity.qualify.difference import Difference
from lockstep.parity.qualify.page import ROOM, WIDTH, bars, page
from lockstep.parity.qualify.qualification import Qualification
from lockstep.parity.qualify.restore import Workload, restore
from lockstep.parity.qualify.trial import Trial

VOID = {"meta", "line", "rect"}


class Reader(HTMLParser):
    """Checks that tags nest, and keeps texts by tag."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def qualified(plant, causes=("s00", "s02"), count=4, **kwargs) -> Qualification:
    trials = plant(count, causes)
    return Qualification(restore(trials.differences, trials.workload), **kwargs)


class TestPage:
    def test_says_the_verdict_and_shows_every_trial(self, plant):
        one = qualified(plant)
        read = Reader(page(one))
        assert read.texts["h2"] == [one.verdict]
        assert len([text for text in read.texts["td"] if text in {"parity", "differs"}]) == len(one.restoration.records)

    def test_needs_nothing_from_elsewhere(self, plant):
        text = page(qualified(plant))
        read = Reader(text)
        assert not read.tags & {"script", "img", "link", "iframe", "object", "base", "form"}
        assert not {name for name, _ in read.attributes} & {"src", "href", "xlink:href", "srcset", "style"}
        assert "url(" not in text
        assert "@import" not in text
        assert "default-src 'none'" in text

    def test_has_both_colour_schemes(self, plant):
        text = page(qualified(plant))
        assert "prefers-color-scheme: dark" in text
        assert 'content="light dark"' in text
        used = set(re.findall(r"var\((--\w+)\)", text))
        light, dark = text.split("prefers-color-scheme: dark")
        colours = used - {"--sans", "--mono"}
        assert all(f"{name}:" in light and f"{name}:" in dark.split("* {")[0] for name in colours)

    @pytest.mark.parametrize("causes", [[], lambda _: False, lambda _: None], ids=["parity", "outside", "undetermined"])
    def test_is_whole_without_an_answer(self, plant, causes):
        one = qualified(plant, causes)
        assert one.verdict in Reader(page(one)).texts["h2"]

    def test_keeps_hostile_texts_as_text(self, plant, hostile):
        clean = Reader(page(qualified(plant, facts={"x": "y"})))
        texts = sorted({*sorted(hostile)[:4], "{{ 7 * 7 }}", "<script>alert(1)</script>"})
        differences = [Difference(name, name, name * 2) for name in texts]
        found = restore(
            differences, Workload(lambda kept: Trial(len(kept) == len(texts), {"mean": 1.0}), lambda: Trial(True))
        )
        facts = dict(zip(hostile, hostile, strict=True))
        text = page(Qualification(found, hostile[0], hostile[7], facts, facts))
        read = Reader(text)
        assert read.tags == clean.tags
        assert "49" not in "".join(read.texts["td"])
        assert '"<script>alert(1)</script>"' in read.texts["td"]
        assert text.encode(), "no half of a surrogate pair is left"


class TestFigure:
    def test_is_well_formed_svg_with_a_bar_for_each_mean_above_zero(self, plant):
        one = qualified(plant)
        svg = ET.fromstring(re.search(r"<svg.*?</svg>", page(one), re.DOTALL)[0])
        rects = svg.findall("rect")
        assert len(rects) == sum(bool(bar.length) for bar in bars(one)) == 3
        assert [rect.get("class") for rect in rects] == ["differs"] * 3
        assert max(float(rect.get("width")) for rect in rects) == WIDTH - ROOM

    def test_bars_are_on_one_linear_scale(self, plant):
        drawn = bars(qualified(plant))
        assert [bar.text for bar in drawn][:2] == ["NEW as it is", "only s00 new"]
        assert drawn[1].length == pytest.approx(drawn[0].length / 4, abs=0.1)
        assert drawn[-1].length == 0.0
        assert [bar.value for bar in drawn][-1] == "0.0 nats"

    def test_what_is_not_zero_can_be_seen(self):
        means = {0: 1.0, 1: 1e-9}
        workload = Workload(lambda kept: Trial(bool(kept), {"mean": means[len(kept)]}), lambda: Trial(True))
        drawn = bars(Qualification(restore([Difference("a", 1, 2)], workload)))
        assert drawn[1].length == 2.0
        assert drawn[1].value == "1e-09 nats"
        assert (drawn[2].length, drawn[2].value) == (None, "not measured")

    def test_there_is_none_if_nothing_was_measured(self):
        workload = Workload(lambda kept: Trial(bool(kept)), lambda: Trial(True))
        one = Qualification(restore([Difference("a", 1, 2)], workload))
        assert bars(one) == []
        assert "<svg" not in page(one)

    def test_all_zeros_have_no_bars(self):
        workload = Workload(lambda kept: Trial(True, {"mean": 0.0}), lambda: Trial(True, {"mean": 0.0}))
        assert {bar.length for bar in bars(Qualification(restore((), workload)))} == {0.0}
