"""Stop strings: the cut, the token that completes one, and what may be shown early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.engine.text import StopText

PIECES = ["a", "b", "ab", "", "ba\n", "aab", "\n"]


class Pieces:
    """Token i is PIECES[i]; token -1 is half a character, which comes out with the next one or at the end."""

    def __init__(self):
        self.half = False

    def push(self, token_id):
        if token_id == -1:
            self.half = True
            return ""
        whole, self.half = ("é" if self.half else "") + PIECES[token_id], False
        return whole

    def flush(self):
        return "\ufffd" if self.half else ""


tokens = st.lists(st.integers(-1, len(PIECES) - 1), max_size=12)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple)


def whole_text(ids):
    pieces = Pieces()
    return "".join([pieces.push(i) for i in ids] + [pieces.flush()])


def first_match(text, stop):
    return min([at for s in stop if (at := text.find(s)) >= 0], default=None)


@given(tokens, stops)
def test_agrees_with_a_search_of_the_whole_text(ids, stop):
    text, shown = StopText(Pieces(), stop), ""
    for used, token in enumerate(ids, 1):
        stopped = text.push(token)
        shown += text.take()
        assert stopped == (first_match(whole_text(ids[:used]), stop) is not None)
        if stopped:
            break
    text.close()
    shown += text.take()
    expected = whole_text(ids[: len(ids)])
    at = first_match(whole_text(ids), stop)
    assert shown == text.text, "what was shown was never taken back"
    if at is None:
        assert text.text == expected
    else:
        assert first_match(text.text, stop) is None
        assert expected.startswith(text.text)


@given(tokens, stops)
def test_what_is_shown_early_is_as_much_as_is_safe(ids, stop):
    text, shown = StopText(Pieces(), stop), ""
    for token in ids:
        if text.push(token):
            return
        shown += text.take()
        held = text.text[len(shown) :]
        assert text.text.startswith(shown)
        assert not held or any(s.startswith(held) for s in stop)


def test_the_first_of_two_matches_cuts():
    text = StopText(Pieces(), ("b", "aa"))
    assert text.push(5)  # "aab" holds both
    assert (text.text, text.take(), text.close()) == ("", "", False)


def test_a_match_across_tokens_was_never_shown():
    text = StopText(Pieces(), ("ab\n",))
    assert not text.push(0)
    assert not text.push(0)
    assert text.take() == "a"
    assert not text.push(1)
    assert text.take() == ""
    assert text.push(6)
    assert (text.take(), text.text) == ("", "a")


def test_a_match_in_what_was_left_at_the_end_counts():
    class Late(Pieces):
        def flush(self):
            return "stop!"

    text = StopText(Late(), ("top",))
    text.push(0)
    assert text.close()
    assert text.text == "as"


def test_nothing_may_follow_the_end():
    text = StopText(Pieces())
    text.push(2)
    text.close()
    with pytest.raises(AssertionError):
        text.push(0)
