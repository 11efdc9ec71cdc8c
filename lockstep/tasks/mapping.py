"""Which columns of a row are the prompt and the answer.

In: rows. Out: tasks, and the mapping that was taken, in words.

| columns | prompt | answer |
| --- | --- | --- |
| data_source, prompt, reward_model (verl; ability, extra_info) | prompt | reward_model.ground_truth |
| prompt | prompt | answer, else ground_truth |
| messages | all but a last message of the assistant | that message, else as above |
| question | question | as above |

The first row that fits decides, for the whole file. Every column but the prompt's own is also metadata, which reaches
a reward function. If every answer holds ``####`` (GSM8K), the answer is what follows the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lockstep.core import Message, Task
from lockstep.errors import InputError, message
from lockstep.tasks.reader import Row

Prompt = str | tuple[Message, ...]
Reader = Callable[[Row], tuple[Prompt, str | None]]

ANSWER_COLUMNS = ("answer", "ground_truth")
MARK = "####"
EXACT = 2.0**53  # JSON integers beyond 64 bits arrive as floats


def tasks_of(rows: Sequence[Row]) -> tuple[list[Task], str]:
    """A task for each row, and the mapping taken. Raises `InputError` naming file, line and column."""
    if not rows:
        return [], "no rows"
    name, source, read = _mapping(rows[0])
    tasks = []
    for row in rows:
        if source not in row.columns:
            raise row.wrong(source, f"every row has the column {source}", sorted(row.columns), source)
        prompt, answer = read(row)
        metadata = {key: value for key, value in row.columns.items() if key != source}
        tasks.append(Task(f"{row.file}:{row.number}", prompt, answer, metadata))
    answers = [task.answer for task in tasks if task.answer is not None]
    if answers and all(MARK in answer for answer in answers):
        name += f" (after {MARK})"
        tasks = [task if task.answer is None else replace(task, answer=_after_mark(task.answer)) for task in tasks]
    return tasks, name


def _mapping(first: Row) -> tuple[str, str, Reader]:
    """The name of the mapping, the column of the prompt, and how to read a row."""
    columns = set(first.columns)
    answer = next((f", {name} -> answer" for name in ANSWER_COLUMNS if name in columns), ", no answer")
    if {"data_source", "prompt", "reward_model"} <= columns:
        return "verl: prompt -> prompt, reward_model.ground_truth -> answer", "prompt", _verl
    if "prompt" in columns:
        return f"prompt -> prompt{answer}", "prompt", _prompted
    if "messages" in columns:
        return "messages -> prompt, last assistant message -> answer", "messages", _messages
    if "question" in columns:
        return f"question -> prompt{answer}", "question", _question
    raise InputError(
        message(
            f"task file ({first.place})",
            "a column holds the prompt",
            got=", ".join(sorted(columns)) or "no columns",
            expected="prompt, messages or question",
            do="Rename the column of the prompt",
        )
    )


def _verl(row: Row) -> tuple[Prompt, str | None]:
    reward_model = row.columns.get("reward_model")
    if not isinstance(reward_model, Mapping):
        raise row.wrong("reward_model", "verl keeps the answer here", reward_model, "an object with ground_truth")
    truth = reward_model.get("ground_truth")
    # A list or an object is for verl's own scoring functions, which get it from the metadata as it is.
    answer = _text(row, "reward_model.ground_truth", truth) if not isinstance(truth, (list, Mapping)) else None
    return _prompt(row, "prompt", row.columns["prompt"]), answer


def _prompted(row: Row) -> tuple[Prompt, str | None]:
    return _prompt(row, "prompt", row.columns["prompt"]), _answer(row)


def _question(row: Row) -> tuple[Prompt, str | None]:
    question = row.columns["question"]
    if not isinstance(question, str):
        raise row.wrong("question", "a question is text", question, "a string")
    return _prompt(row, "question", question), _answer(row)


def _messages(row: Row) -> tuple[Prompt, str | None]:
    conversation = _conversation(row, "messages", row.columns["messages"])
    if conversation[-1]["role"] != "assistant":
        return conversation, _answer(row)
    if len(conversation) == 1:
        raise row.wrong("messages", "the assistant answers a message", conversation, "a message of the user first")
    return conversation[:-1], conversation[-1]["content"]


def _answer(row: Row) -> str | None:
    column = next((name for name in ANSWER_COLUMNS if name in row.columns), None)
    return None if column is None else _text(row, column, row.columns[column])


def _text(row: Row, column: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and abs(value) >= EXACT:
        raise row.wrong(column, "a number this large has lost its last digits", value, "the number as a string")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    raise row.wrong(column, "an answer is text or a number", value, "a string")


def _prompt(row: Row, column: str, value: Any) -> Prompt:
    if isinstance(value, str):
        if not value.strip():
            raise row.wrong(column, "a prompt is not empty", value, "some text")
        return value
    return _conversation(row, column, value)


def _conversation(row: Row, column: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise row.wrong(column, "a prompt is text or a list of messages", value, "a string or a list that is not empty")
    return tuple(_message(row, f"{column}[{index}]", part) for index, part in enumerate(value))


def _message(row: Row, column: str, part: Any) -> Message:
    """One chat message. Parquet gives the keys that other rows use as None; they are no part of this one."""
    if not isinstance(part, Mapping):
        raise row.wrong(column, "a message is an object", part, '{"role": ..., "content": ...}')
    kept = {key: value for key, value in part.items() if value is not None}
    for key in ("role", "content"):
        if not isinstance(kept.get(key), str):
            raise row.wrong(f"{column}.{key}", f"a message has a {key}", part.get(key), "a string")
    for key, value in kept.items():
        if not isinstance(value, str):
            raise row.wrong(f"{column}.{key}", "only text is supported in messages", value, "a string")
    return kept


def _after_mark(answer: str) -> str:
    return answer.rsplit(MARK, 1)[1].strip()
