"""The search finds what was planted, whatever hides it, and claims no more than its trials show."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import InputError, StageError
from lockstep.parity.qualify.difference import Difference
from lockstep.parity.qualify.restore import COUNTING, Workload, bound, restore
from lockstep.parity.qualify.trial import Record, Trial

WITHOUT_LIMIT = 10**6


def subsets(names):
    names = sorted(names)
    return [frozenset(some) for size in range(len(names) + 1) for some in combinations(names, size)]


def names(count: int) -> list[str]:
    return [f"s{number:02d}" for number in range(count)]


@st.composite
def planted(draw, most_causes=4, most=12):
    """Number of differences, and the causes among them."""
    count = draw(st.integers(1, most))
    causes = draw(st.sets(st.sampled_from(names(count)), min_size=1, max_size=min(count, most_causes)))
    return count, frozenset(causes)


@st.composite
def masked(draw):
    """Number, causes, and pairs of bystanders of which the first may not be put back without the second."""
    count, causes = draw(planted(most=9))
    others = sorted(set(names(count)) - causes)
    pair = st.tuples(st.sampled_from(others), st.sampled_from(others)) if others else st.nothing()
    return count, causes, draw(st.lists(pair, max_size=3)) if others else []


@st.composite
def arbitrary(draw, undetermined=False):
    """Number, and any outcomes at all of its sets; the ends are as a search needs them."""
    count = draw(st.integers(1, 5))
    every = subsets(names(count))
    outcome = st.sampled_from([True, False, None] if undetermined else [True, False])
    table = dict(zip(every, draw(st.lists(outcome, min_size=len(every), max_size=len(every))), strict=True))
    table[frozenset()], table[frozenset(names(count))] = False, True
    return count, table


def check(found, trials):
    """What must hold of every answer, whatever was planted."""
    assert trials.outcome(found.kept) is True
    assert len(trials.ran) == len(set(trials.ran)) == len(found.records) <= found.bound, "no set is run twice"
    assert [record.kept for record in found.records] == trials.ran, "in order"
    assert list(found.records) == trials.seen
    for member in found.members:
        name = member.difference.name
        assert member.without.parity == trials.outcome(found.kept - {name}) is not True
        assert member.alone.parity == trials.outcome(trials.all - {name})
    assert found.undetermined == sum(trials.outcome(kept) is None for kept in trials.ran if kept is not None)
    if found.smallest == "counted":
        smaller = [some for some in subsets(trials.all) if len(some) < len(found.kept)]
        assert all(trials.outcome(some) is False for some in smaller)


class TestEnds:
    @pytest.mark.parametrize("itself", [False, None])
    def test_nothing_is_qualified_against_what_does_not_agree_with_itself(self, plant, itself):
        trials = plant(3, ["s01"], itself=itself)
        found = restore(trials.differences, trials.workload)
        assert found.status == "refused"
        assert trials.ran == [None]
        assert not found.members

    def test_parity_needs_no_search(self, plant):
        trials = plant(3, [])
        found = restore(trials.differences, trials.workload)
        assert found.status == "parity"
        assert trials.ran == [None, frozenset()]
        assert not found.minimal, "there is no answer to be minimal"

    def test_a_cause_that_is_no_setting_is_outside(self, plant):
        trials = plant(3, lambda kept: False)
        found = restore(trials.differences, trials.workload)
        assert found.status == "outside"
        assert trials.ran == [None, frozenset(), trials.all]
        assert found.kept == frozenset()

    @pytest.mark.parametrize(("differs", "status"), [(True, "outside"), (False, "parity"), (None, "undetermined")])
    def test_without_differences_only_the_ends_are_run(self, plant, differs, status):
        trials = plant(0, lambda kept: None if differs is None else not differs)
        assert restore((), trials.workload).status == status
        assert trials.ran == [None, frozenset()]

    def test_an_end_without_an_answer_ends_the_search(self, plant):
        for silent in (frozenset(), frozenset(names(3))):
            trials = plant(3, lambda kept, silent=silent: None if kept == silent else "s01" in kept)
            found = restore(trials.differences, trials.workload)
            assert found.status == "undetermined"
            assert found.undetermined == 1

    def test_purposes_are_told(self, plant):
        trials = plant(4, ["s00", "s03"])
        found = restore(trials.differences, trials.workload)
        assert [record.purpose for record in found.records[:3]] == ["baseline", "new", "restored"]
        assert {record.purpose for record in found.records[3:]} <= {"search", "verify", "attribute", "count"}

    def test_two_differences_of_one_name_are_a_mistake_of_ours(self, plant):
        trials = plant(1, [])
        with pytest.raises(AssertionError, match="one difference a name"):
            restore(trials.differences * 2, trials.workload)


class TestPlanted:
    @given(planted())
    def test_exactly_the_planted_causes_are_found(self, plant, case):
        trials = plant(*case)
        found = restore(trials.differences, trials.workload)
        check(found, trials)
        assert found.status == "restored"
        assert found.kept == case[1]
        assert found.minimal
        assert found.smallest in {"counted", "monotone"}
        assert found.masking is None

    @given(planted())
    def test_without_counting_each_member_is_still_indispensable(self, plant, case):
        trials = plant(*case)
        found = restore(trials.differences, trials.workload, counting=0)
        check(found, trials)
        assert found.kept == case[1]
        assert found.smallest == "counted" if len(case[1]) == 1 else found.smallest in {"counted", "monotone"}
        assert len(found.records) <= bound(case[0], 0)

    @given(st.integers(1, 40), st.data())
    def test_one_cause_costs_logarithmically_many_trials(self, plant, count, data):
        cause = data.draw(st.sampled_from(names(count)))
        trials = plant(count, {cause})
        found = restore(trials.differences, trials.workload)
        assert found.kept == {cause}
        assert len(found.records) <= 5 + 2 * count.bit_length()

    @pytest.mark.parametrize(("causes", "most"), [(1, 11), (2, 18), (3, 23), (4, 28)])
    def test_few_trials_do_for_twelve_differences(self, plant, causes, most):
        for chosen in combinations(names(12), causes):
            trials = plant(12, chosen)
            found = restore(trials.differences, trials.workload, counting=0)
            assert found.kept == set(chosen)
            assert len(found.records) <= most

    def test_the_order_of_the_differences_changes_nothing(self, plant):
        one, other = plant(6, ["s01", "s04"]), plant(6, ["s01", "s04"])
        assert restore(one.differences, one.workload).kept == restore(other.differences[::-1], other.workload).kept
        assert one.ran == other.ran

    def test_attribution_has_the_figures_of_each_member_alone(self, plant):
        trials = plant(5, ["s01", "s03"])
        found = restore(trials.differences, trials.workload)
        assert [member.difference.name for member in found.members] == ["s01", "s03"]
        for member in found.members:
            assert member.alone.figures["mean"] == pytest.approx(0.01), "one setting is new"
            assert member.without.figures["mean"] == pytest.approx(0.04), "four settings are new"


class TestMasking:
    @settings(max_examples=60)
    @given(masked())
    def test_the_planted_causes_are_found_behind_settings_that_need_one_another(self, plant, case):
        count, causes, pairs = case
        trials = plant(count, lambda kept: causes <= kept and all(b in kept for a, b in pairs if a in kept))
        found = restore(trials.differences, trials.workload, counting=WITHOUT_LIMIT)
        check(found, trials)
        assert found.kept == causes
        assert found.smallest == "counted"

    @given(arbitrary())
    def test_any_outcomes_at_all_give_a_smallest_set(self, plant, case):
        count, table = case
        trials = plant(count, table.__getitem__)
        found = restore(trials.differences, trials.workload, counting=WITHOUT_LIMIT)
        check(found, trials)
        assert found.smallest == "counted"
        assert len(found.kept) == min(len(some) for some, parity in table.items() if parity)

    @given(arbitrary())
    def test_without_counting_any_outcomes_give_a_set_of_which_no_member_can_go(self, plant, case):
        count, table = case
        trials = plant(count, table.__getitem__)
        found = restore(trials.differences, trials.workload, counting=0)
        check(found, trials)
        assert found.minimal
        assert found.smallest != "monotone" or not found.masking

    def test_two_faults_that_cancel_are_not_called_causes_when_a_third_is_enough(self, plant):
        def outcome(kept):
            new = {"s00", "s01", "s02"} - kept
            return new in (set(), {"s00", "s01"})

        trials = plant(4, outcome)
        found = restore(trials.differences, trials.workload)
        assert found.kept == {"s02"}
        assert found.smallest == "counted"

    def test_masking_is_shown_by_two_trials(self, plant):
        full = frozenset(names(4))
        trials = plant(4, lambda kept: kept in ({"s01", "s03"}, {"s00", "s01", "s03"}, full))
        found = restore(trials.differences, trials.workload)
        assert found.kept == {"s01", "s03"}
        assert found.masking is not None
        less, more = found.masking
        assert less.kept < more.kept
        assert (less.trial.parity, more.trial.parity) == (True, False)

    def test_indispensable_members_prove_nothing_once_masking_was_seen(self, plant):
        full = frozenset(names(4))
        trials = plant(4, lambda kept: kept in ({"s01", "s03"}, {"s00", "s01", "s03"}, full))
        found = restore(trials.differences, trials.workload, counting=0)
        assert all(member.alone.parity is False for member in found.members)
        assert found.smallest == "open"

    def test_counting_finds_what_halving_cannot_see(self, plant):
        full = frozenset(names(4))
        trials = plant(4, lambda kept: kept in ({"s00", "s02"}, full))
        assert restore(trials.differences, trials.workload, counting=0).kept == full
        found = restore(trials.differences, trials.workload)
        assert found.kept == {"s00", "s02"}
        assert found.smallest == "counted"


class TestUndetermined:
    @given(arbitrary(undetermined=True), st.sampled_from([0, WITHOUT_LIMIT]))
    def test_are_never_parity(self, plant, case, counting):
        count, table = case
        trials = plant(count, table.__getitem__)
        found = restore(trials.differences, trials.workload, counting=counting)
        check(found, trials)
        assert found.minimal == all(table[found.kept - {name}] is False for name in found.kept)

    @given(planted(most=8), st.data())
    def test_make_the_answer_larger_at_worst(self, plant, case, data):
        count, causes = case
        silent = data.draw(st.sets(st.sampled_from(subsets(names(count))[1:-1] or [frozenset("x")]), max_size=12))
        trials = plant(count, lambda kept: None if kept in silent else causes <= kept)
        found = restore(trials.differences, trials.workload)
        check(found, trials)
        assert found.kept >= causes

    def test_a_member_that_only_an_undetermined_trial_speaks_for_is_not_called_needed(self, plant):
        trials = plant(2, lambda kept: {0: False, 2: True}.get(len(kept)))
        found = restore(trials.differences, trials.workload)
        assert found.kept == {"s00", "s01"}
        assert [member.needed for member in found.members] == [False, False]
        assert not found.minimal
        assert found.smallest == "open"
        assert found.undetermined == 2


class TestKnown:
    @given(planted(most=8), st.data())
    def test_a_search_goes_on_where_it_was_cut_off(self, plant, case, data):
        whole = plant(*case)
        expected = restore(whole.differences, whole.workload)
        cut = data.draw(st.integers(0, len(expected.records)))
        rest = plant(*case)
        found = restore(rest.differences, rest.workload, known=expected.records[:cut])
        assert rest.ran == whole.ran[cut:]
        assert (found.kept, found.smallest, found.members) == (expected.kept, expected.smallest, expected.members)
        assert [record.known for record in found.records] == [place < cut for place in range(len(found.records))]

    @given(arbitrary(undetermined=True))
    def test_a_whole_log_needs_no_trial(self, plant, case):
        trials = plant(case[0], case[1].__getitem__)
        expected = restore(trials.differences, trials.workload)

        def never(*_):
            raise AssertionError("everything is known")

        found = restore(trials.differences, Workload(never, never), known=expected.records)
        assert found.members == expected.members
        assert [r.trial for r in found.records] == [r.trial for r in expected.records]

    def test_trials_that_are_known_and_not_asked_for_are_not_listed(self, plant):
        trials = plant(3, ["s00"])
        known = [Record(frozenset({"s00", "s02"}), "search", Trial(True))]
        found = restore(trials.differences, trials.workload, known=known)
        assert not any(record.known for record in found.records)

    def test_an_answer_takes_the_place_of_an_undetermined_trial(self, plant):
        trials = plant(1, ["s00"])
        new = frozenset()
        known = [Record(new, "new", Trial(None)), Record(new, "new", Trial(False)), Record(new, "new", Trial(None))]
        found = restore(trials.differences, trials.workload, known=known)
        assert found.status == "restored"
        assert new not in trials.ran

    def test_names_of_another_pair_are_refused(self, plant):
        trials = plant(1, ["s00"])
        with pytest.raises(InputError, match=r"known trials \(dtype\): .+ - got .+, expected names among s00\. Give"):
            restore(trials.differences, trials.workload, known=[Record(frozenset({"dtype"}), "new", Trial(True))])
        assert trials.ran == []

    @pytest.mark.parametrize(("kept", "name"), [(None, "OLD"), (frozenset(), "NEW"), (frozenset({"s00"}), "s00")])
    def test_contradictions_are_refused(self, plant, kept, name):
        trials = plant(1, ["s00"])
        known = [Record(kept, "new", Trial(True)), Record(kept, "new", Trial(False))]
        with pytest.raises(InputError, match=rf"known trials \({name}\): one set must have one outcome"):
            restore(trials.differences, trials.workload, known=known)


class TestFailure:
    def test_what_was_run_before_a_failure_was_told(self, plant):
        trials = plant(4, ["s02"])

        def fails(kept):
            if len(trials.seen) == 5:
                raise StageError("engine (x): died")
            return trials.trial(kept)

        with pytest.raises(StageError, match="died"):
            restore(trials.differences, Workload(fails, trials.baseline, trials.seen.append))
        assert len(trials.seen) == 5
        rest = plant(4, ["s02"])
        assert restore(rest.differences, rest.workload, known=trials.seen).kept == {"s02"}
        assert not set(rest.ran) & {record.kept for record in trials.seen}


class TestBound:
    @given(st.integers(0, 5), st.data())
    def test_is_never_passed(self, plant, count, data):
        table = {some: data.draw(st.sampled_from([True, False, None])) for some in subsets(names(count))}
        trials = plant(count, table.__getitem__)
        counting = data.draw(st.integers(0, 40))
        found = restore(trials.differences, trials.workload, counting=counting)
        assert len(trials.ran) <= found.bound == bound(count, counting)

    def test_counting_is_not_begun_when_it_would_not_do(self, plant):
        trials = plant(12, ["s00", "s05", "s11"])
        found = restore(trials.differences, trials.workload, counting=COUNTING)
        assert found.smallest == "monotone"
        assert not any(record.purpose == "count" for record in found.records)

    def test_four_causes_of_five_are_counted_by_default(self, plant):
        trials = plant(5, ["s00", "s01", "s02", "s04"])
        assert restore(trials.differences, trials.workload).smallest == "counted"

    def test_many_differences_are_not_enumerated(self, plant):
        trials = plant(60, names(60)[::2])
        found = restore(trials.differences, trials.workload)
        assert len(found.members) == 30
        assert found.smallest == "monotone"


def test_a_trial_is_looked_up_by_its_set(plant):
    trials = plant(2, ["s00"])
    found = restore(trials.differences, trials.workload)
    assert found.trial(None) == found.records[0].trial
    assert found.trial(frozenset({"s00"})).parity
    assert found.trial(frozenset({"nonesuch"})) is None


def test_differences_need_not_be_plain_for_the_search(plant):
    trials = plant(1, ["s00"])
    difference = Difference("s00", object(), object())
    assert restore([difference], trials.workload).members[0].difference is difference
