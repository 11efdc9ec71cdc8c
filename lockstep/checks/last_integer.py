"""The check that reads the last number of a text as the answer.

In: a task whose answer is an integer, a text. Out: a `Verdict` with the number and where it stands.

| text | read as | why |
| --- | --- | --- |
| `5 + 7 = 12.` `**12**` `$12` `12%` | 12 | signs, marks and the full stop of a sentence are not part of a number |
| `-12` `(-12)` `\N{MINUS SIGN}12` | -12 | a minus counts if nothing it could subtract from stands before it ... |
| `20-12` `x-12` `)-12` `- 12` | 12 | ... and nothing stands between it and the number (`- 12` is an item of a list) |
| `1,234` `1,234.0` | 1234 | thousands, if every group is whole |
| `1,2` `0,123` `12,34` | 2, 123, 34 | any other comma separates |
| `12.0` `12.` | 12 | a fraction of zeros changes no value |
| `12.5` `.5` `1.2.3` | not an integer | **and no earlier number is taken instead** |
| `x12` `12kg` `12th` `1e3` `5\N{SUPERSCRIPT TWO}` `v1.5` | no number | digits that touch a letter are part of a word |
| digits of other scripts | their value | as `int` reads them |
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from dataclasses import dataclass

from lockstep.core import Task, Verdict

# Letters and digits of any script are [^\W_]. What follows may be neither a letter nor more of the number, so the match
# cannot give digits back, and a number that touches a letter is no number at all. (Possessive quantifiers would say the
# same; those of Python 3.11.2, Debian's, lose matches.)
_NUMBER = re.compile(
    r"""(?: (?P<point> (?<![\w.]) \. )              # .5, unless the point ends an ellipsis or a sentence
          | (?<! [^\W_] ) (?<! \d[.,] ) )           # or at the start of a run of digits
        (?P<body> \d+ (?: [.,] \d+ )* )
        (?! [^\W_] | [.,]\d )""",
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"[^\D0]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_MINUS = "-\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class LastInteger:
    """The last number in the text is the integer that the task's answer names (its own last number).

    A pass guarantees that no number follows the right one. A last number that is no integer fails (``not_an_integer``);
    an earlier one is never taken in its place. A task without an integer answer is `abstain`, never `fail`.
    """

    name: str = "last_integer@1"

    def check(self, task: Task, text: str) -> Verdict:
        """Pass (``equal``), fail (``unequal``, ``not_an_integer``, ``no_number``) or abstain."""
        if task.answer is None:
            return Verdict("abstain", "no_answer", self.name)
        _, right, _ = last_number(task.answer) or ("", None, None)
        if right is None:
            return Verdict("abstain", "answer_not_an_integer", self.name, witness=task.answer)
        last = last_number(text)
        if last is None:
            return Verdict("fail", "no_number", self.name)
        written, found, span = last
        if found is None:
            return Verdict("fail", "not_an_integer", self.name, written, span)
        passed = found == right
        return Verdict("pass" if passed else "fail", "equal" if passed else "unequal", self.name, written, span)


def last_number(text: str) -> tuple[str, str | None, tuple[int, int]] | None:
    """The last number: as written, as plain digits (None: not an integer), and its characters in `text`.

    Digits rather than an `int`, because a text may hold more of them than Python agrees to convert.
    """
    matches = deque(_NUMBER.finditer(text), maxlen=1)
    if not matches:
        return None
    match = matches.pop()
    start, end = match.span()
    body = match["body"]
    if "," in body and not _THOUSANDS.fullmatch(body):
        body = body[body.rindex(",") + 1 :]
        start = end - len(body)
    elif not match["point"] and _negative(text, start):
        start -= 1
    whole, _, fraction = body.replace(",", "").partition(".")
    if match["point"] or set(_plain(fraction)) - {"0"}:
        return text[start:end], None, (start, end)
    digits = _plain(whole).lstrip("0") or "0"
    sign = "-" if text[start] in _MINUS and digits != "0" else ""
    return text[start:end], sign + digits, (start, end)


def _negative(text: str, start: int) -> bool:
    before = text[start - 2 : start - 1] if start >= 2 else ""
    return start > 0 and text[start - 1] in _MINUS and not (before.isalnum() or before in {")", "]", "}"})


def _plain(digits: str) -> str:
    return "".join(c if c == "." else str(unicodedata.decimal(c)) for c in digits)
