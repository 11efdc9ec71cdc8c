from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.adapters.engines.client import Client
from lockstep.adapters.engines.spec import KINDS, Spec, parse
from lockstep.errors import InputError


def test_kind_model_and_settings():
    spec = parse("vllm:smollm2,dtype=float32,enforce_eager=true,max_num_seqs=8,swap=0.5,x=null")
    assert (spec.kind, spec.what) == ("vllm", "smollm2")
    assert spec.settings == {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8, "swap": 0.5, "x": None}


def test_an_address_keeps_its_colons():
    spec = parse("openai:http://127.0.0.1:8000/v1,model=a/b")
    assert (spec.what, spec.settings) == ("http://127.0.0.1:8000/v1", {"model": "a/b"})


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("smollm2", "begins with a kind"),
        ("", "begins with a kind"),
        ("sglang:m", "begins with a kind"),
        ("vllm", "begins with a kind"),
        ("vllm:", "follows the colon"),
        ("vllm:,dtype=float32", "follows the colon"),
        ("vllm:m,dtype", "NAME=VALUE"),
        ("vllm:m,", "NAME=VALUE"),
        ("vllm:m,a-b=1", "NAME=VALUE"),
        ("vllm:m,a=1,a=2", "given once"),
    ],
)
def test_what_is_refused_and_why(text, rule):
    with pytest.raises(InputError, match=rule):
        parse(text)


names = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,9}\Z")
values = st.one_of(st.booleans(), st.integers(), st.sampled_from(["float32", "salt", "a/b", "x y"]), st.none())


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(names, values, max_size=4))
def test_a_word_comes_back_from_what_it_means(kind, settings):
    spec = Spec(kind, "smollm2", settings)
    assert parse(str(spec)) == spec


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_a_clear_refusal(text):
    try:
        parse(text)
    except InputError as error:
        assert "docs/auditor.md" in str(error)


class TestClient:
    def test_its_settings_are_taken_off_the_engines(self):
        client, rest = Client.of({"prefix_cache": "salt", "weights": "lost", "dtype": "float32"})
        assert client == Client("lost", "salt") and rest == {"dtype": "float32"}

    @pytest.mark.parametrize("settings", [{"weights": "gone"}, {"prefix_cache": True}, {"prefix_cache": "flush"}])
    def test_no_other_choice(self, settings):
        with pytest.raises(InputError, match="no such choice"):
            Client.of(settings)

    def test_a_salt_is_of_a_version(self):
        assert Client(prefix_cache="salt").salt(3) == "version-3" != Client(prefix_cache="salt").salt(4)
        assert Client(prefix_cache="reset").salt(3) is None and Client(prefix_cache="keep").salt(3) is None

    def test_what_it_says(self):
        assert Client().said == {"cache_salt": "none", "prefix_cache_reset": "at every update", "weights": "reload"}
        assert Client(prefix_cache="salt").said["cache_salt"] == "per_version"
        assert Client(prefix_cache="keep").said["prefix_cache_reset"] is False
