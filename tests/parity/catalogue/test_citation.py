"""Sources: every number has an address, and nothing is lost between the text and its parts."""

from __future__ import annotations

import re

import pytest

from lockstep.parity.catalogue import CATALOGUE
from lockstep.parity.catalogue.citation import MIGRATION, PAGES, TRACKERS, Citation, citations

FAULTS = pytest.mark.parametrize("fault", CATALOGUE.values(), ids=lambda fault: fault.code)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("TRL #4159", [Citation("TRL #4159", "https://github.com/huggingface/trl/issues/4159")]),
        (
            "nano-vllm #144; PipelineRL, by design",
            [
                Citation("nano-vllm #144", "https://github.com/GeeeekExplorer/nano-vllm/issues/144"),
                Citation("PipelineRL, by design"),
            ],
        ),
        ("ScaleRL, arXiv 2510.13786", [Citation("ScaleRL, arXiv 2510.13786", "https://arxiv.org/abs/2510.13786")]),
        ("arXiv 2510.1378", [Citation("arXiv 2510.1378")]),
        ("nobody's #3", [Citation("nobody's #3")]),
        ("TRL #4159 and others", [Citation("TRL #4159 and others")]),
        (MIGRATION, [Citation(MIGRATION, PAGES[MIGRATION])]),
    ],
)
def test_parts_and_addresses(source: str, parts: list[Citation]) -> None:
    assert list(citations(source)) == parts


@FAULTS
def test_nothing_is_lost(fault) -> None:
    parts = citations(fault.source)
    assert "; ".join(part.text for part in parts) == fault.source
    assert all(part.text and part.text == part.text.strip(" ;.") for part in parts)
    assert len({part.text for part in parts}) == len(parts)


@FAULTS
def test_every_number_has_an_address(fault) -> None:
    without = [part.text for part in citations(fault.source) if part.url is None]
    assert not [text for text in without if re.search(r"#\d|arXiv", text)], "no such project in TRACKERS"


@FAULTS
def test_addresses_are_well_formed(fault) -> None:
    for part in citations(fault.source):
        assert part.url is None or re.fullmatch(r"https://[\w.-]+/[\w./-]+", part.url)


def test_projects_are_all_cited_and_written_in_one_way() -> None:
    cited = {part.text.rpartition(" #")[0] for fault in CATALOGUE.values() for part in citations(fault.source)}
    assert set(TRACKERS) <= cited, f"nobody cites {sorted(set(TRACKERS) - cited)}"
    assert len({repository.lower() for repository in TRACKERS.values()}) == len(TRACKERS)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", repository) for repository in TRACKERS.values())


def test_the_causes_of_the_published_migration_cite_it() -> None:
    cite = {code for code, fault in CATALOGUE.items() if MIGRATION in {part.text for part in citations(fault.source)}}
    assert {"SEM01", "CAC01", "CAC02", "NUM01"} <= cite
