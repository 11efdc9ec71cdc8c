"""Workloads whose causes are planted, so that the right answer is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from lockstep.parity.qualify.difference import Difference
from lockstep.parity.qualify.restore import Workload
from lockstep.parity.qualify.trial import Record, Trial

Kept = frozenset[str]


@dataclass
class Plant:
    """A workload of the settings s00, s01 ... whose outcome is `outcome(kept)`; it writes down what was run."""

    count: int
    outcome: Callable[[Kept], bool | None]
    ran: list[Kept | None] = field(default_factory=list)
    seen: list[Record] = field(default_factory=list)
    itself: bool | None = True

    @property
    def names(self) -> list[str]:
        return [f"s{number:02d}" for number in range(self.count)]

    @property
    def all(self) -> Kept:
        return frozenset(self.names)

    @property
    def differences(self) -> tuple[Difference, ...]:
        return tuple(Difference(name, f"old_{name}", f"new_{name}") for name in self.names)

    @property
    def workload(self) -> Workload:
        return Workload(self.trial, self.baseline, self.seen.append)

    def trial(self, kept: Kept) -> Trial:
        assert kept <= self.all
        self.ran.append(kept)
        parity = self.outcome(kept)
        mean = 0.0 if parity else 0.01 * (self.count - len(kept))
        return Trial(parity, {} if parity is None else {"mean": mean, "max": 5 * mean, "tokens": 400})

    def baseline(self) -> Trial:
        self.ran.append(None)
        return Trial(self.itself, {"mean": 0.0 if self.itself else 0.2})


def _make(count: int, causes: Iterable[str] | Callable[[Kept], bool | None], **kwargs) -> Plant:
    if callable(causes):
        return Plant(count, causes, **kwargs)
    wanted = frozenset(causes)
    return Plant(count, lambda kept: wanted <= kept, **kwargs)


@pytest.fixture(scope="session")
def plant() -> Callable[..., Plant]:
    """`plant(count, causes)`: parity when all of `causes` are put back; or a function of what is put back."""
    return _make


HOSTILE = (
    "<script>alert(1)</script>",
    "a|b\\|c",
    "`x` ``y``",
    "*b* __c__ ~~d~~ [l](http://e) ![i](f) <!-- ",
    "two\nlines\r\n| --- |",
    "]]>&amp;\"'\x00\x1b[31m",
    "\u202egnp.exe",
    "{{ 7 * 7 }}{% raw %}",
    "# head",
    "https://evil.example www.evil.example",
    "\ud800",
)


@pytest.fixture(scope="session")
def hostile() -> tuple[str, ...]:
    """Texts that would be markup, or break a line, in one format or another."""
    return HOSTILE
