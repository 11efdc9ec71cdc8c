"""Every injected fault of the catalogue: it begins where it should, and nothing of it is left behind."""

from __future__ import annotations

import pytest

from lockstep.harness.faults import INJECTIONS
from lockstep.parity.catalogue import CATALOGUE

stories = pytest.mark.parametrize("story", INJECTIONS, indirect=True)


def test_every_fault_of_the_catalogue_has_an_injection():
    assert set(INJECTIONS) == set(CATALOGUE) and len(INJECTIONS) >= 40


@stories
def test_steps_before_the_onset_are_clean(story, like, moved) -> None:
    assert len(story.before) == story.injection.onset - 1 >= 1
    for seen, clean in zip(story.before, story.clean, strict=False):
        assert like(seen, clean) and not moved(seen)


@stories
def test_everything_is_put_back(story, like) -> None:
    assert story.left == frozenset()
    assert like(story.again, story.clean[0])
