"""Tasks from files: mappings, splits, errors that name the place, and whatever a fuzzer can think of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.config import TaskConfig
from lockstep.errors import InputError
from lockstep.tasks import TaskSet, load_tasks


def jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def load(path: Path, **config: Any) -> TaskSet:
    return load_tasks(TaskConfig(name=str(path), **config), 0)


def both(tasks: TaskSet):
    return sorted(tasks.train + tasks.held_out, key=lambda task: task.id)


def questions(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"{i} + 1?", "answer": str(i + 1), **more} for i in range(count)]


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_prompt_and_answer(tmp_path: Path, write: Any):
    rows = [{"prompt": f"{i}?", "answer": f"no {i}", "level": i} for i in range(5)]
    path = write(tmp_path / f"t.{write.__name__}", *rows)
    tasks = load(path)
    assert [(t.id, t.prompt, t.answer, t.metadata) for t in both(tasks)] == [
        (f"{path.name}:{i + 1}", f"{i}?", f"no {i}", {"answer": f"no {i}", "level": i}) for i in range(5)
    ]
    assert (len(tasks.held_out), tasks.check) == (1, "exact")
    assert tasks.mapping == (f"{path.name}: prompt -> prompt, answer -> answer; check exact; held out 1 of 5 by seed 0")


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_chat_prompts(tmp_path: Path, write: Any):
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
        [{"role": "user", "content": "3 + 3?", "name": "ann"}],
    ]
    rows = [{"prompt": chat, "ground_truth": str(i)} for i, chat in enumerate(chats)]
    tasks = both(load(write(tmp_path / f"t.{write.__name__}", *rows)))
    assert [task.prompt for task in tasks] == [tuple(chat) for chat in chats]  # Parquet's empty `name` is gone
    assert [task.answer for task in tasks] == ["0", "1"]


def test_question_and_answer(tmp_path: Path):
    tasks = load(jsonl(tmp_path / "t.jsonl", *questions(4)))
    assert {task.prompt for task in both(tasks)} == {f"{i} + 1?" for i in range(4)}
    assert tasks.check == "last_integer"
    assert "question -> prompt, answer -> answer;" in tasks.mapping


def test_gsm8k_answers_follow_the_mark(tmp_path: Path):
    rows = [{"question": f"q{i}", "answer": f"Take {i}.\nThen #### 1,0{i}0"} for i in range(3)]
    tasks = load(jsonl(tmp_path / "t.jsonl", *rows))
    assert [task.answer for task in both(tasks)] == ["1,000", "1,010", "1,020"]
    assert both(tasks)[1].metadata["answer"] == rows[1]["answer"]
    assert tasks.check == "last_integer"
    assert "(after ####)" in tasks.mapping


def test_a_mark_in_some_answers_only_is_text(tmp_path: Path):
    rows = [{"question": "a", "answer": "x #### 1"}, {"question": "b", "answer": "2"}]
    tasks = load(jsonl(tmp_path / "t.jsonl", *rows))
    assert [task.answer for task in both(tasks)] == ["x #### 1", "2"]
    assert tasks.check == "exact"


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_verl_columns(tmp_path: Path, write: Any):
    rows = [
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": f"{i}?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i},
        }
        for i in range(3)
    ]
    tasks = load(write(tmp_path / f"t.{write.__name__}", *rows))
    task = both(tasks)[2]
    assert (task.prompt, task.answer) == (({"role": "user", "content": "2?"},), "2")
    assert task.metadata == {key: value for key, value in rows[2].items() if key != "prompt"}
    assert "verl: prompt -> prompt, reward_model.ground_truth -> answer" in tasks.mapping


def test_verl_ground_truth_of_another_type_is_left_to_the_reward_function(tmp_path: Path):
    rows = [
        {"data_source": "x", "prompt": str(i), "reward_model": {"ground_truth": {"target": [1, 2]}}} for i in range(2)
    ]
    path = jsonl(tmp_path / "t.jsonl", *rows)
    tasks = load(path, reward="my.function")
    assert [task.answer for task in both(tasks)] == [None, None]
    assert both(tasks)[0].metadata["reward_model"] == {"ground_truth": {"target": [1, 2]}}


def test_messages(tmp_path: Path):
    user, assistant = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    rows = [{"messages": [user, assistant]}, {"messages": [user, assistant, user], "answer": "again"}]
    first, second = both(load(jsonl(tmp_path / "t.jsonl", *rows)))
    assert (first.prompt, first.answer) == ((user,), "hello")
    assert (second.prompt, second.answer) == ((user, assistant, user), "again")


def test_numbers_as_answers(tmp_path: Path):
    rows = [{"prompt": f"p{i}", "answer": value} for i, value in enumerate([7, -3, 2.0, "1,234", 2**62])]
    tasks = load(jsonl(tmp_path / "t.jsonl", *rows))
    assert [task.answer for task in both(tasks)] == ["7", "-3", "2.0", "1,234", str(2**62)]
    assert tasks.check == "last_integer"


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "answer": "1"}\r\n\n   \n{"prompt": "b\xe2\x80\xa8", "answer": "2"}')
    assert [task.id for task in both(load(path))] == ["t.jsonl:1", "t.jsonl:4"]


def test_answers_or_a_reward_function(tmp_path: Path):
    path = jsonl(tmp_path / "t.jsonl", {"prompt": "a"}, {"prompt": "b", "answer": None})
    assert load(path, reward="my.function").check == "exact"
    with pytest.raises(InputError, match=r"needs a reward function - got no answers and no task.reward"):
        load(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "b"', r"line 2\): each line is one JSON object - got unexpected end of data at column 15"),
        ('["b"]', r"line 2\): each line is one JSON object - got list, expected for example"),
        ("null", r"line 2\): each line is one JSON object - got NoneType"),
        ('{"prompt": NaN}', r"line 2\): each line is one JSON object - got unexpected character"),
        ('{"prompt": "\\ud800"}', r"line 2\): each line is one JSON object - got no low surrogate"),
        ("[" * 9999, r"line 2\): each line is one JSON object - got depth limit"),
        ('{"question": "b"}', r"line 2, column prompt\): every row has the column prompt - got \['question'\]"),
        ('{"prompt": ""}', r"line 2, column prompt\): a prompt is not empty - got ''"),
        ('{"prompt": " \\n"}', r"line 2, column prompt\): a prompt is not empty"),
        ('{"prompt": null}', r"line 2, column prompt\): a prompt is text or a list of messages - got None"),
        ('{"prompt": []}', r"line 2, column prompt\): a prompt is text or a list of messages - got \[\]"),
        ('{"prompt": ["b"]}', r"line 2, column prompt\[0\]\): a message is an object - got 'b'"),
        ('{"prompt": [{"role": "user"}]}', r"column prompt\[0\].content\): a message has a content - got None"),
        ('{"prompt": [{"content": "b"}]}', r"column prompt\[0\].role\): a message has a role - got None"),
        ('{"prompt": [{"role": "user", "content": ["b"]}]}', r"prompt\[0\].content\): .* got \['b'\], expected a str"),
        ('{"prompt": [{"role": "user", "content": "b", "n": 1}]}', r"prompt\[0\].n\): only text is supported"),
        ('{"prompt": "b", "answer": true}', r"line 2, column answer\): an answer is text or a number - got True"),
        ('{"prompt": "b", "answer": ["1"]}', r"line 2, column answer\): an answer is text or a number - got \['1'\]"),
        ('{"prompt": "b", "answer": 123456789012345678901}', r"column answer\): a number this large has lost its last"),
        (json.dumps({"prompt": {"x": "y" * 99}}), r"got \{'x': 'y{70,75}\.\.\., expected a string or a list"),
    ],
)
def test_errors_name_file_line_and_column(tmp_path: Path, line: str, says: str):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=says) as failure:
        load(path)
    assert str(failure.value).startswith("task file (t.jsonl, line 2")
    assert str(failure.value).endswith((" Mend this row.", " Mend this line."))
    assert len(str(failure.value)) < 400


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": [{"role": "assistant", "content": "x"}]}, r"column messages\): the assistant answers a message"),
        ({"messages": "x"}, r"column messages\): a prompt is text or a list of messages - got 'x'"),
        ({"question": ["x"]}, r"column question\): a question is text - got \['x'\]"),
        ({"data_source": "x", "prompt": "p", "reward_model": None}, r"column reward_model\): verl keeps the answer"),
        ({"text": "x", "label": 1}, r"t.jsonl, line 1\): a column holds the prompt - got label, text, expected prompt"),
        ({}, r"line 1\): a column holds the prompt - got no columns"),
    ],
)  # fmt: skip
def test_errors_of_the_other_mappings(tmp_path: Path, row: dict[str, Any], says: str):
    with pytest.raises(InputError, match=says):
        load(jsonl(tmp_path / "t.jsonl", row, row))


def test_parquet_errors_name_the_row(tmp_path: Path):
    path = parquet(tmp_path / "t.parquet", {"prompt": "a", "answer": "1"}, {"prompt": "", "answer": "1"})
    with pytest.raises(InputError, match=r"t.parquet, row 2, column prompt\): a prompt is not empty"):
        load(path)


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_unreadable_files(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=rf"task file \({name}\): the file must be readable - got .*No such file"):
        load(tmp_path / name)
    with pytest.raises(InputError, match="the file must be readable"):
        load(tmp_path / ("x" * 5000 + name))


def test_damaged_parquet(tmp_path: Path):
    path = parquet(tmp_path / "t.parquet", *({"prompt": f"a{i}", "answer": "1"} for i in range(100)))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PAR1", whole[:50] + b"\xff" * 50 + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"task file \(t.parquet") as failure:
            load(path)
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_zero_prompts(tmp_path: Path, content: str):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match="a file holds prompts - got no rows"):
        load(path)
    parquet_path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), parquet_path)
    with pytest.raises(InputError, match="a file holds prompts - got no rows"):
        load(parquet_path)


def test_a_folder_with_its_own_test_split(tmp_path: Path):
    parquet(tmp_path / "main" / "train-00000-of-00002.parquet", *questions(6))
    parquet(tmp_path / "main" / "train-00001-of-00002.parquet", *questions(9)[6:])
    parquet(tmp_path / "main" / "test-00000-of-00001.parquet", *questions(12)[8:])
    (tmp_path / "README.md").write_text("# not data")
    jsonl(tmp_path / ".cache" / "train.jsonl", {"prompt": "hidden"})
    tasks = load(tmp_path)
    assert [task.prompt for task in tasks.train] == [f"{i} + 1?" for i in range(8)]
    assert [task.prompt for task in tasks.held_out] == [f"{i} + 1?" for i in range(8, 12)]
    assert tasks.train[6].id == "main/train-00001-of-00002.parquet:1"
    assert tasks.mapping.endswith("held out the test split, 1 of its prompts left out of training")


def test_a_folder_with_a_validation_split(tmp_path: Path):
    jsonl(tmp_path / "validation" / "0.jsonl", *questions(3))
    jsonl(tmp_path / "train" / "0.jsonl", *questions(9)[3:])
    tasks = load(tmp_path)
    assert (len(tasks.train), len(tasks.held_out)) == (6, 3)
    assert tasks.mapping.endswith("held out the validation split")


@pytest.mark.parametrize("name", ["data.jsonl", "train.jsonl", "test.jsonl"])
def test_a_folder_with_one_split_is_split_by_the_seed(tmp_path: Path, name: str):
    jsonl(tmp_path / name, *questions(10))
    tasks = load(tmp_path)
    assert (len(tasks.train), len(tasks.held_out)) == (8, 2)
    assert tasks.mapping.endswith("held out 2 of 10 by seed 0")


def test_folders_that_are_not_one_data_set(tmp_path: Path):
    with pytest.raises(InputError, match=r"one data set is taken - got no such file, expected .jsonl or .parquet"):
        load(tmp_path)
    jsonl(tmp_path / "main" / "train.jsonl", *questions(3))
    jsonl(tmp_path / "socratic" / "train.jsonl", *questions(3))
    with pytest.raises(InputError, match="one data set is taken - got the folders main, socratic"):
        load(tmp_path)
    assert len(both(load(tmp_path / "main"))) == 3


def test_a_test_split_that_covers_all_of_training(tmp_path: Path):
    jsonl(tmp_path / "train.jsonl", *questions(3))
    jsonl(tmp_path / "test.jsonl", *questions(4))
    with pytest.raises(InputError, match="every training prompt is in the test split too"):
        load(tmp_path)


def test_the_word_of_a_split_must_stand_alone(tmp_path: Path):
    jsonl(tmp_path / "latest-contest.jsonl", *questions(3))
    jsonl(tmp_path / "test_part.jsonl", *questions(6)[3:])
    tasks = load(tmp_path)
    assert (len(tasks.train), len(tasks.held_out)) == (3, 3)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=6
)
messages = st.lists(
    st.fixed_dictionaries({}, optional={"role": scalars, "content": scalars, "name": scalars}), max_size=3
)
rows = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(min_size=1) | messages | values,
        "messages": messages | values,
        "question": st.text() | values,
        "answer": st.text() | values,
        "data_source": st.text(),
        "reward_model": st.fixed_dictionaries({}, optional={"ground_truth": values}) | values,
    },
)
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)


def tasks_or_input_error(path: Path) -> None:
    try:
        tasks = load(path, reward="some.function")
    except InputError as failure:
        assert "task" in str(failure) and " - got " in str(failure) and ", expected " in str(failure)
        return
    assert tasks.train and tasks.held_out
    for task in tasks.train + tasks.held_out:
        assert task.prompt
        assert task.answer is None or isinstance(task.answer, str)
        if not isinstance(task.prompt, str):
            assert all(isinstance(value, str) for part in task.prompt for value in part.values())
            assert all({"role", "content"} <= part.keys() for part in task.prompt)


@fuzz
@given(data=st.lists(rows, max_size=4))
def test_fuzz_rows(tmp_path: Path, data: list[dict[str, Any]]):
    tasks_or_input_error(jsonl(tmp_path / "t.jsonl", *data))


@fuzz
@given(
    data=st.binary()
    | st.lists(values.map(json.dumps) | st.text(), max_size=4).map(
        lambda v: "\n".join(v).encode("utf-8", "surrogatepass")
    )
)
def test_fuzz_bytes(tmp_path: Path, data: bytes):
    for name in ("t.jsonl", "t.parquet"):
        (tmp_path / name).write_bytes(data)
        tasks_or_input_error(tmp_path / name)
