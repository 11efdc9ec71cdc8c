"""The catalogue: every row is there, in order, whole, and in words that can be printed anywhere."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import InputError
from lockstep.harness.faults import INJECTIONS
from lockstep.parity.catalogue import CATALOGUE, COMMON, SECTIONS, find, of_layer
from lockstep.parity.fault import Fault, Layer

SIZES = {"SEM": 8, "DAT": 8, "WGT": 10, "CAC": 5, "PTH": 6, "NUM": 6, "OBJ": 6}
SOFT = {"NUM01", "NUM02", "NUM03", "NUM04", "NUM05", "NUM06", "DAT07", "OBJ03", "CAC05", "PTH04", "PTH05", "WGT07"}
PROSE = tuple(SECTIONS)
LINES = ("title", "setting", "source")
FAULTS = pytest.mark.parametrize("fault", CATALOGUE.values(), ids=lambda fault: fault.code)


# -- codes


def test_every_row_is_there_in_the_order_of_looking() -> None:
    assert list(CATALOGUE) == [f"{layer}{n:02d}" for layer, size in SIZES.items() for n in range(1, size + 1)]
    assert len(CATALOGUE) == 49
    assert [fault.layer.rank for fault in CATALOGUE.values()] == sorted(f.layer.rank for f in CATALOGUE.values())


@FAULTS
def test_a_fault_is_found_by_its_own_code(fault: Fault) -> None:
    assert CATALOGUE[fault.code] is fault
    assert re.fullmatch(r"[A-Z]{3}\d{2}", fault.code)
    assert fault.layer is Layer[fault.code[:3]]
    assert fault in of_layer(fault.layer)


def test_layers_are_told_in_the_order_of_looking_and_hold_everything() -> None:
    assert list(COMMON) == list(Layer)
    assert [fault for layer in COMMON for fault in of_layer(layer)] == list(CATALOGUE.values())
    assert all(text.endswith(".") and "`" not in text for text in COMMON.values())


def test_what_is_noise_or_rare_or_honest_has_three_steps_and_the_rest_none() -> None:
    assert {code for code, fault in CATALOGUE.items() if not fault.hard} == SOFT


def test_whatever_can_be_injected_is_in_the_catalogue() -> None:
    assert set(INJECTIONS) <= set(CATALOGUE)


# -- texts


def test_sections_and_lines_are_all_that_a_fault_says() -> None:
    assert {*PROSE, *LINES, "code", "hard"} == {field.name for field in fields(Fault)}


@FAULTS
@pytest.mark.parametrize("name", [*PROSE, *LINES])
def test_a_text_is_whole_and_can_be_printed(fault: Fault, name: str) -> None:
    text = getattr(fault, name)
    assert text and text.isprintable(), "one paragraph, no line break"
    assert text == " ".join(text.split()), "single blanks, none around"
    assert text.isascii(), "any terminal can show it"
    assert text.count("`") % 2 == 0, "code is closed"
    assert "|" not in text, "it would end the cell of a table"
    assert not re.match(r"[#>*+-] |\d+\. ", text), "Markdown would take it for a list or a heading"
    assert not re.search(r"\b(TODO|TBD|FIXME|XXX|lorem)\b", text, re.IGNORECASE)


@FAULTS
@pytest.mark.parametrize("name", PROSE)
def test_prose_is_sentences(fault: Fault, name: str) -> None:
    text = getattr(fault, name)
    assert re.match(r"[A-Z`\d]", text), "begins like a sentence"
    assert text.endswith(".") and not text.endswith(".."), "ends like one"
    assert 20 <= len(text) <= 520, "rich, and brief"


@FAULTS
def test_a_title_is_a_heading_and_a_setting_a_line(fault: Fault) -> None:
    assert fault.title[0].isupper() or fault.title[0].isdigit()
    assert not fault.title.endswith(".") and len(fault.title) <= 64, "one line of a list"
    assert not fault.setting.endswith(".") and len(fault.setting) <= 150, "what a verdict prints"
    assert not fault.title.count("`"), "it stands in headings and links"


def test_no_text_is_said_twice() -> None:
    texts = Counter(getattr(fault, name) for fault in CATALOGUE.values() for name in (*PROSE, "title", "setting"))
    assert [text for text, times in texts.items() if times > 1] == []


@FAULTS
def test_other_faults_that_a_text_names_exist(fault: Fault) -> None:
    named = {code for name in PROSE for code in re.findall(r"\b[A-Z]{3}\d{2}\b", getattr(fault, name))}
    assert named <= set(CATALOGUE) - {fault.code}


@pytest.mark.parametrize(
    ("code", "key"),
    [
        ("SEM01", 'logprobs_mode="processed_logprobs"'),
        ("SEM03", "return_sampling_mask"),
        ("SEM04", 'generation_config="vllm"'),
        ("CAC01", 'cache_salt=f"w{version}"'),
        ("CAC01", "/reset_prefix_cache"),
        ("CAC03", "reset_running_requests=true"),
        ("PTH02", "enable_chunked_prefill=False"),
        ("PTH06", "async_scheduling=False"),
        ("WGT10", 'collective_rpc("reload_weights", ...)'),
        ("NUM01", 'hf_overrides={"head_dtype": "float32"}'),
        ("NUM05", 'kv_cache_dtype="auto"'),
    ],
)
def test_the_setting_is_the_key_of_the_tool_that_has_it(code: str, key: str) -> None:
    assert any(key in part for part in CATALOGUE[code].setting.split("`")[1::2])


# -- find


@FAULTS
def test_find_does_not_mind_capitals_and_blanks(fault: Fault) -> None:
    assert find(fault.code) is fault
    assert find(f"  {fault.code.lower()}\n") is fault


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("SEM1", "Did you mean SEM01."),
        ("cac1", "Did you mean CAC01."),
        ("SM01", "Did you mean SEM01."),
        ("WGT010", "Did you mean one of WGT01, WGT10."),
        ("CAC09", "Did you mean one of CAC01, CAC02, CAC03, CAC04, CAC05."),
        ("prefix cache", "`lockstep faults` lists them."),
        ("", "`lockstep faults` lists them."),
    ],
)
def test_a_typing_error_is_answered_with_the_nearest_codes(typed: str, answer: str) -> None:
    with pytest.raises(InputError, match=re.escape(answer)) as raised:
        find(typed)
    assert str(raised.value).startswith(f"fault ({typed}): ")
    assert "49 codes from SEM01 to OBJ06" in str(raised.value)


@given(code=st.sampled_from(list(CATALOGUE)), at=st.integers(0, 4))
def test_a_code_that_lost_a_letter_is_among_the_nearest(code: str, at: int) -> None:
    with pytest.raises(InputError, match=rf"Did you mean .*\b{code}\b"):
        find(code[:at] + code[at + 1 :])


@given(st.text(max_size=200))
def test_anything_else_is_an_input_error(typed: str) -> None:
    if typed.strip().upper() in CATALOGUE:
        assert find(typed).code == typed.strip().upper()
        return
    with pytest.raises(InputError) as raised:
        find(typed)
    assert len(str(raised.value)) < 400
