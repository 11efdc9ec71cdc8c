"""Groups of rollouts on their way from the engine to the trainer: issued in order, consumed in order, never too old.

In: finished rollouts, in any order. Out: which groups to ask for, and the groups of the next batch.

    issue --> outstanding --put: a rollout is finished--> whole --take: the oldest B, if all are whole--> trainer
      ^       at most B * (max_lag + 1) groups                      too old: dropped and counted
      +--- back-pressure: nothing is asked for beyond that --------------+

Why the bound holds. Weights only get newer, so no token of a group is older than the weights at its issue. At that
time fewer than B * (max_lag + 1) groups are before it in the queue, so it is consumed at most max_lag steps later. To
consume in order also keeps short answers from being preferred. The bound is checked again for every token that is
consumed: what broke it (an engine that fell behind) is dropped, and another group takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.core import Rollout


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """All rollouts of one problem. `number` counts groups since the run began."""

    number: int
    rollouts: tuple[Rollout, ...]

    @property
    def oldest(self) -> int:
        """The oldest weight version that any of its tokens was drawn with."""
        return min(int(rollout.provenance.weight_version.min()) for rollout in self.rollouts)

    @property
    def num_tokens(self) -> int:
        return sum(len(rollout.token_ids) for rollout in self.rollouts)


@dataclass(slots=True)
class Dropped:
    """What was sampled and not trained on, since the last `take_dropped`."""

    groups: int = 0
    tokens: int = 0


class Buffer:
    """`per_step` groups of `size` rollouts make a batch; no token of it is more than `max_age` versions old."""

    __slots__ = ("_dropped", "_open", "_whole", "max_age", "max_groups", "next_number", "per_step", "size")

    def __init__(self, per_step: int, size: int, max_lag: int, versions_per_step: int = 1) -> None:
        self.per_step, self.size = per_step, size
        self.max_age = max_lag * versions_per_step
        self.max_groups = per_step * (max_lag + 1)
        self.next_number = 0
        self._open: dict[int, dict[int, Rollout]] = {}  # outstanding groups by number, in order of issue
        self._whole: dict[int, Group] = {}
        self._dropped = Dropped()

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Numbers of the groups that are not whole yet, in order."""
        return tuple(self._open)

    @property
    def first_number(self) -> int:
        """The first group that is not consumed: where a run that loses all that is in flight would go on."""
        return min([*self._open, *self._whole], default=self.next_number)

    @property
    def num_whole(self) -> int:
        return len(self._whole)

    @property
    def num_finished(self) -> int:
        """Rollouts that have come in for the next batch."""
        numbers = sorted([*self._open, *self._whole])[: self.per_step]
        return sum(self.size if n in self._whole else len(self._open[n]) for n in numbers)

    def issue(self, steps_ahead: int) -> tuple[int, ...]:
        """Numbers of groups to ask for now: as many as the bound allows, for at most `steps_ahead` batches."""
        room = min(self.max_groups, self.per_step * steps_ahead) - len(self._open) - len(self._whole)
        numbers = tuple(range(self.next_number, self.next_number + max(room, 0)))
        self._open |= {number: {} for number in numbers}
        self.next_number += len(numbers)
        return numbers

    def put(self, number: int, place: int, rollout: Rollout) -> None:
        """Take in the finished sample `place` of a group that is outstanding."""
        group = self._open[number]
        assert 0 <= place < self.size and place not in group, f"sample {place} of group {number} came twice"
        group[place] = rollout
        if len(group) == self.size:
            del self._open[number]
            self._whole[number] = Group(number, tuple(group[i] for i in range(self.size)))

    def drop(self, number: int) -> None:
        """Give up a group: whatever has come of it is not trained on."""
        group = self._whole.pop(number, None)
        rollouts = group.rollouts if group else self._open.pop(number).values()
        self._dropped.groups += 1
        self._dropped.tokens += sum(len(rollout.token_ids) for rollout in rollouts)

    def take(self, version: int) -> tuple[Group, ...] | None:
        """The groups of the next batch, oldest first, or None if they are not whole. Weights are at `version` now."""
        for number in [n for n, group in self._whole.items() if version - group.oldest > self.max_age]:
            self.drop(number)
        numbers = sorted([*self._open, *self._whole])[: self.per_step]
        if len(numbers) < self.per_step or any(number in self._open for number in numbers):
            return None
        return tuple(self._whole.pop(number) for number in numbers)

    def take_dropped(self) -> Dropped:
        """What was dropped since the last call."""
        dropped, self._dropped = self._dropped, Dropped()
        return dropped

    def restart(self, next_number: int) -> None:
        """Forget everything, and go on with group `next_number`."""
        self._open, self._whole, self.next_number = {}, {}, next_number

    def check(self) -> None:
        """Prove that no group is in two places, that the bound is kept, and that what is whole is whole."""
        numbers = [*self._open, *self._whole]
        assert len(set(numbers)) == len(numbers), "a group is open and whole"
        assert len(numbers) <= self.max_groups, f"{len(numbers)} groups, at most {self.max_groups}"
        assert all(number < self.next_number for number in numbers), "a group that was never asked for"
        assert all(len(group) < self.size for group in self._open.values()), "an open group is whole"
        assert all(len(group.rollouts) == self.size for group in self._whole.values()), "a whole group lacks a rollout"
