"""What the tests of the examples share: a home of their own, and trainings of a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from examples.migration.training import Training


@pytest.fixture(autouse=True, scope="session")
def models_in_a_cache_of_their_own(tmp_path_factory: pytest.TempPathFactory, new_home) -> Iterator[None]:
    """The tiny model is built once, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_HOME", str(new_home(tmp_path_factory.mktemp("home") / "cache")))
        yield


@pytest.fixture(scope="session")
def short() -> Training:
    """Without a warm start nothing is right, and no weight would move: every letter that is a vowel earns something."""
    return Training(
        steps=3,
        prompts=6,
        generations=4,
        warm_start=0,
        tokens_per_step=40,
        evaluated=1,
        reward="tests.examples.vowels.vowels",
    )
