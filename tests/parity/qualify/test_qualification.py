"""The line of verdict and the sentences under it say what the trials show, and the JSON form holds all of it."""

from __future__ import annotations

import math

import orjson
import pytest

from lockstep.errors import InputError
from lockstep.parity.qualify.difference import Difference
from lockstep.parity.qualify.qualification import Qualification, claims, kept_in_words, label, ladder, nats, verdict
from lockstep.parity.qualify.restore import Workload, restore
from lockstep.parity.qualify.trial import Trial

FIXES = (
    Difference("cache_salt", "per_version", None),
    Difference("logprobs_mode", "processed_logprobs", "raw_logprobs"),
    Difference("max_num_seqs", 256, 1024),
)


def search(outcome, differences=FIXES, itself=True, **kwargs):
    def trial(kept):
        parity = outcome(kept)
        return Trial(parity, {"mean": 0.0 if parity else 0.1, "why": math.nan})

    return restore(differences, Workload(trial, lambda: Trial(itself, {"mean": 0.0})), **kwargs)


def both(kept):
    return {"cache_salt", "logprobs_mode"} <= kept


class TestVerdict:
    def test_names_the_settings_and_their_old_values(self):
        found = search(both, counting=0)
        assert Qualification(found).verdict == (
            "NEW differs from OLD; restored by 2 settings: cache_salt=per_version, logprobs_mode=processed_logprobs "
            f"({len(found.records)} trials)"
        )

    def test_of_one_setting_is_in_the_singular(self):
        text = Qualification(search(lambda kept: "max_num_seqs" in kept), "vLLM 0.8.5", "vLLM 0.18.1").verdict
        assert text.startswith("vLLM 0.18.1 differs from vLLM 0.8.5; restored by 1 setting: max_num_seqs=256 (")

    def test_of_parity(self):
        assert (
            Qualification(search(lambda _: True)).verdict == "NEW agrees with OLD, though 3 settings differ (2 trials)"
        )
        assert "1 setting differs " in Qualification(search(lambda _: True, FIXES[:1])).verdict
        assert Qualification(search(lambda _: True, ())).verdict == "NEW agrees with OLD (2 trials)"

    def test_of_a_cause_outside_of_the_settings(self):
        assert Qualification(search(lambda _: False)).verdict == (
            "NEW differs from OLD, also with the 3 settings that differ put back: the cause is outside of the "
            "settings, e.g. in the code (3 trials)"
        )
        alone = Qualification(search(lambda _: False, ())).verdict
        assert alone.startswith("NEW differs from OLD: the cause is outside of the settings")

    def test_of_a_baseline_that_does_not_hold(self):
        assert Qualification(search(both, itself=False)).verdict == (
            "refused: OLD differs from itself, so that nothing can be qualified against it (1 trial)"
        )
        assert "could not be compared with itself" in Qualification(search(both, itself=None)).verdict

    def test_of_an_end_without_an_answer_says_which(self):
        assert Qualification(search(lambda _: None)).verdict == "undetermined: NEW as it is gave no answer (2 trials)"
        late = search(lambda kept: None if len(kept) == 3 else False)
        assert "NEW with all differing settings put back gave no answer" in Qualification(late).verdict

    def test_is_one_printable_line_whatever_the_names_are(self, hostile):
        differences = [Difference(name, name, "x") for name in hostile[:-1]]
        found = search(lambda kept: len(kept) == len(differences), differences)
        for text in hostile:
            line = Qualification(found, old=text, new=text).verdict
            assert line.isprintable()
            assert len(line.splitlines()) == 1

    def test_shows_what_is_not_its_own_as_it_is_told(self):
        text = verdict(Qualification(search(both, counting=0)), lambda value: f"<{value}>")
        assert text.startswith("<NEW> differs from <OLD>; restored by 2 settings: <cache_salt=per_version>, <")

    @pytest.mark.parametrize(
        ("outcome", "itself", "code"),
        [
            (lambda _: True, True, 0),
            (both, True, 1),
            (lambda _: False, True, 1),
            (lambda _: None, True, 1),
            (both, False, 2),
            (both, None, 2),
        ],
    )
    def test_has_an_exit_code(self, outcome, itself, code):
        assert Qualification(search(outcome, itself=itself)).exit_code == code


class TestClaims:
    def said(self, found) -> str:
        return " ".join(claims(Qualification(found)))

    def test_a_counted_answer_is_called_smallest(self):
        text = self.said(search(both))
        assert "with any single one new again, the sides differ" in text
        assert "every one was tried" in text

    def test_an_answer_of_indispensable_members_names_its_assumption(self):
        text = self.said(search(both, counting=0))
        assert "No other set restores parity unless it holds these too" in text
        assert "is assumed" in text

    def test_an_answer_that_is_not_proven_says_so(self):
        found = search(lambda kept: {0: False, 3: True}.get(len(kept)))
        text = self.said(found)
        assert "Whether all are needed is open" in text
        assert "Whether a smaller set would do is open" in text
        assert f"{found.undetermined} trials of {len(found.records)} gave no answer; none" in text

    def test_masking_is_told(self):
        names = [Difference(f"s{i}", 1, 2) for i in range(4)]
        sets = ({"s1", "s3"}, {"s0", "s1", "s3"}, {"s0", "s1", "s2", "s3"})
        text = self.said(search(lambda kept: kept in sets, names, counting=0))
        assert "mask one another: with s1, s3 put back the sides agree, with all but s0 they differ" in text

    def test_the_bound_and_the_earlier_log_are_told(self):
        found = search(both)
        again = search(both, known=found.records[:4])
        assert f"no search among as many differences needs more than {found.bound}." in self.said(found)
        assert f"Trials: {len(found.records)}, 4 of them taken from an earlier log" in self.said(again)

    def test_no_answer_claims_nothing_of_one(self):
        assert "smaller" not in self.said(search(lambda _: False))


class TestPlain:
    def test_holds_everything_and_is_json(self):
        found = search(both, counting=0)
        told = orjson.loads(orjson.dumps(Qualification(found, facts={"os": "x"}, figures={"s": 1.5}).plain()))
        assert told["schema"] == "lockstep.qualify/1"
        assert told["restored_by"] == {"cache_salt": "per_version", "logprobs_mode": "processed_logprobs"}
        assert told["differences"][2] == {"name": "max_num_seqs", "old": 256, "new": 1024}
        assert (told["minimal"], told["smallest"], told["masking"]) == (True, "monotone", None)
        assert [member["alone"]["outcome"] for member in told["members"]] == ["differs", "differs"]
        assert told["num_trials"] == len(told["trials"]) == len(found.records)
        assert told["trials"][0]["kept"] is None
        assert told["trials"][1]["figures"]["why"] is None, "what is not finite is null"
        assert (told["facts"], told["figures"], told["exit_code"]) == ({"os": "x"}, {"s": 1.5}, 1)

    def test_of_hostile_texts_is_json_too(self, hostile):
        sides = dict(zip(hostile, hostile, strict=True))
        found = search(lambda _: False, [Difference(name, name, 1) for name in hostile[:-1]])
        told = Qualification(found, hostile[-1], hostile[0], facts=sides, figures=sides).plain()
        assert orjson.loads(orjson.dumps(told))["differences"][0]["name"] == min(hostile[:-1])

    def test_of_a_value_that_is_not_plain_is_refused(self):
        found = search(lambda _: False, [Difference("x", object(), 1)])
        with pytest.raises(InputError, match=r"setting \(x\)"):
            Qualification(found).plain()


class TestWords:
    @pytest.mark.parametrize(
        ("kept", "words"),
        [
            (None, "OLD against itself"),
            ((), "no setting"),
            (("a", "b", "c", "d", "e"), "all settings"),
            (("a", "b", "c", "d"), "all but e"),
            (("a", "b", "c"), "all but d, e"),
            (("a", "e"), "a, e"),
        ],
    )
    def test_sets_are_told_shortly(self, kept, words):
        five = [Difference(name, 1, 2) for name in "abcde"]
        assert kept_in_words(None if kept is None else frozenset(kept), five) == words

    def test_a_setting_cannot_pose_as_words(self):
        two = [Difference("all settings", 1, 2), Difference("x", 1, 2)]
        assert kept_in_words(frozenset({"all settings"}), two) == '"all settings"'

    @pytest.mark.parametrize(
        ("value", "text"), [(0.0, "0.0"), (1e-12, "1e-12"), (0.12345, "0.123"), (None, "\N{EN DASH}")]
    )
    def test_only_zero_is_called_zero(self, value, text):
        assert nats(value) == text

    @pytest.mark.parametrize(
        ("value", "text"), [("vLLM 0.8", "vLLM 0.8"), ("a\nb", '"a\\u000ab"'), (" ", '" "'), (3, "3")]
    )
    def test_labels_are_printable(self, value, text):
        assert label(value) == text


class TestLadder:
    def test_goes_from_new_by_each_member_to_old(self):
        rows = ladder(Qualification(search(both), "A", "B"))
        assert [text for text, _ in rows] == [
            "B as it is", "only cache_salt new", "only logprobs_mode new", "B restored", "A against itself",
        ]  # fmt: skip
        assert [trial.mean for _, trial in rows] == [0.1, 0.1, 0.1, 0.0, 0.0]

    def test_shows_no_trial_twice(self):
        rows = ladder(Qualification(search(bool, FIXES[:1])))
        assert [text for text, _ in rows] == ["NEW as it is", "NEW restored", "OLD against itself"]

    def test_shows_the_ends_that_were_run(self):
        assert [text for text, _ in ladder(Qualification(search(both, itself=False)))] == ["OLD against itself"]
        rows = ladder(Qualification(search(lambda _: False)))
        assert [text for text, _ in rows] == ["NEW as it is", "NEW with everything put back", "OLD against itself"]
