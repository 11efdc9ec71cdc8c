"""The tokenizer agrees with transformers; its stream never shows half a character; templates are foreign code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from lockstep.errors import InputError, ModelError
from lockstep.models.tiny import TINY, build_random, small
from lockstep.models.tokenizer import Tokenizer, TokenStream

USER = [{"role": "user", "content": "What is 2 + 3?"}]
CHAT = [{"role": "system", "content": "Be brief."}, *USER, {"role": "assistant", "content": "5"}, *USER]
TEXTS = [
    "", " ", "\n\n", "hello world", "  leading and trailing  ", "1234567890", "3.14159 and 2e10", "don't we'll I'm",
    "the quick brown fox", "naïve café Köln", "日本語のテキスト",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a\tb\r\nc", "<|im_start|>user\nhi<|im_end|>\n", "<|im_end", "x" * 500, "\x00\x01", "\ufffd", "e\u0301", "\u2028",
]  # fmt: skip
# text as users write it: words, digits, spaces, specials, and any character at all
text = st.lists(
    st.text(max_size=6) | st.sampled_from([*TEXTS, "<|endoftext|>", "12", " ", "'s", "the"]), max_size=6
).map("".join)


@pytest.fixture(scope="module")
def ours(converted):
    return Tokenizer.from_directory(converted)


@pytest.fixture(scope="module")
def theirs(converted):
    return AutoTokenizer.from_pretrained(converted)


@pytest.fixture
def directory(converted, tmp_path):
    """A copy that may be damaged."""
    return Path(shutil.copytree(converted, tmp_path / "model"))


def edit(file, **changes):
    tree = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**tree, **changes}))


@pytest.mark.parametrize("sample", TEXTS)
def test_known_texts(sample, ours, theirs):
    ids = ours.encode(sample)
    assert ids == theirs(sample)["input_ids"] == ours.encode_prompt(sample)
    assert ours.decode(ids, skip_special=False) == theirs.decode(ids) == sample
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@given(text)
def test_encodes_and_decodes_as_transformers(ours, theirs, sample):
    ids = ours.encode(sample)
    assert ids == theirs(sample)["input_ids"]
    assert ours.decode(ids, skip_special=False) == sample


@given(st.lists(st.integers(0, 500), max_size=20), st.booleans())
def test_decodes_any_ids_as_transformers(ours, theirs, ids, skip):
    assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_digits_are_single_tokens(ours):
    assert [ours.decode([i]) for i in ours.encode("2024+1")] == ["2", "0", "2", "4", "+", "1"]


def test_the_tiny_tokenizer(tmp_path):
    build_random(tmp_path / "tiny", TINY)
    ours, theirs = Tokenizer.from_directory(tmp_path / "tiny"), AutoTokenizer.from_pretrained(tmp_path / "tiny")
    for sample in ("12 + 34 = ?", "abc>cba", "What IS it?", "a<eos>b", "umlaut ü", "\n", ""):
        ids = ours.encode(sample)
        assert ids == theirs(sample)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ours.encode("abc +=?>.:-, 0189")) == "abc +=?>.:-, 0189"
    assert len(ours.encode("reverse me>")) == 11
    assert ours.vocab_size == TINY.vocab_size == 48
    assert ours.eos_ids == (1,)
    assert ours.render(USER) == theirs.apply_chat_template(USER, add_generation_prompt=True, tokenize=False)


def test_chat_template_as_transformers(ours, theirs):
    for chat in (USER, CHAT):
        for prompting in (True, False):
            expected = theirs.apply_chat_template(chat, add_generation_prompt=prompting, tokenize=False)
            assert ours.render(chat, add_generation_prompt=prompting) == expected
        assert ours.encode_prompt(chat) == theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ours.chats
    assert ours.render(tuple(USER)).endswith("<|im_start|>assistant\n")


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": text}), min_size=1))
def test_any_chat_as_transformers(ours, theirs, chat):
    assert ours.render(chat) == theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


TEMPLATES = {
    "blocks are trimmed": "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'b': '<é>'} | tojson(sort_keys=true) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}!{% endfor %}",
    "specials": "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}{{ nothing }}",
    "tools": "{% if tools is none and documents is none %}none{% endif %}{% if tools %}some{% endif %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_the_hub(name, directory):
    (directory / "chat_template.jinja").write_text(TEMPLATES[name])
    ours, theirs = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    assert ours.render(CHAT) == theirs.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert ours.render(CHAT)


def test_where_templates_are_found(directory):
    (directory / "chat_template.jinja").unlink()
    settings = directory / "tokenizer_config.json"
    edit(settings, chat_template="A")
    assert Tokenizer.from_directory(directory).render(USER) == "A"
    edit(settings, chat_template=[{"name": "tool_use", "template": "B"}, {"name": "default", "template": "C"}])
    assert Tokenizer.from_directory(directory).render(USER) == "C"
    edit(settings, chat_template=None)
    plain = Tokenizer.from_directory(directory)
    assert not plain.chats
    with pytest.raises(InputError, match="no chat template - got 1 messages, expected a plain string"):
        plain.render(USER)
    assert plain.encode_prompt("still works") == plain.encode("still works")


def test_strftime_now(directory):
    (directory / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    assert Tokenizer.from_directory(directory).render(USER).isdigit()


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.missing.more }}",
        "{{ 1 / 0 }}",
        "{{ messages[0] + 1 }}",
    ],
)
def test_a_template_that_refuses_is_an_input_error(template, directory):
    (directory / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=r"conversation: the chat template refused it - got \S+"):
        Tokenizer.from_directory(directory).render(USER)


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([], "a conversation has messages"),
        (["hello"], "message 0 must have role and content - got 'hello'"),
        ([*USER, {"role": "user"}], "message 1 must have role and content"),
        ([{"role": "user", "content": None}], "message 0"),
        ([{"role": "user", "content": ["x"]}], "message 0"),
    ],
)
def test_malformed_conversations(chat, said, ours):
    with pytest.raises(InputError, match=said):
        ours.encode_prompt(chat)


def test_text_that_is_not_unicode(ours):
    with pytest.raises(InputError, match="surrogates"):
        ours.encode("\ud800")


@pytest.mark.parametrize("bad", [-1, 2**32, 2**70])
def test_impossible_ids(bad, ours):
    with pytest.raises(InputError, match=rf"token id: out of range - got {bad}"):
        ours.decode([5, bad])


def test_ids_of_a_padded_vocabulary_say_nothing(ours):
    assert ours.decode([10_000, *ours.encode("a"), 10_001]) == "a"


def test_a_training_scripts_truncation_is_not_inherited(directory):
    core = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    core.enable_truncation(max_length=2)
    core.enable_padding(length=8)
    core.save(str(directory / "tokenizer.json"))
    assert len(Tokenizer.from_directory(directory).encode("1 2 3")) == 5


def test_bos_is_added_where_the_tokenizer_does(directory):
    core = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    core.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    core.save(str(directory / "tokenizer.json"))
    ours, theirs = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    assert ours.encode_prompt("a b") == theirs("a b")["input_ids"] == [1, *ours.encode("a b")]
    assert ours.encode_prompt(USER) == theirs.apply_chat_template(USER, add_generation_prompt=True)["input_ids"]
    assert ours.encode_prompt(USER)[:2] != [1, 1]


def test_where_eos_is_found(directory):
    generation, config = directory / "generation_config.json", directory / "config.json"
    edit(generation, eos_token_id=[2, 0])
    assert Tokenizer.from_directory(directory).eos_ids == (2, 0)
    generation.unlink()
    edit(config, eos_token_id=1)
    assert Tokenizer.from_directory(directory).eos_ids == (1,)
    edit(config, eos_token_id=None)
    assert Tokenizer.from_directory(directory).eos_ids == (2,)  # tokenizer_config's <|im_end|>
    edit(directory / "tokenizer_config.json", eos_token={"content": "<|endoftext|>", "special": True})
    assert Tokenizer.from_directory(directory).eos_ids == (0,)
    edit(directory / "tokenizer_config.json", eos_token=None)
    assert Tokenizer.from_directory(directory).eos_ids == ()
    edit(directory / "special_tokens_map.json", eos_token="<|im_start|>")
    assert Tokenizer.from_directory(directory).eos_ids == (1,)
    for bad in ("x", True, -1, [2, "x"], 1.5):
        edit(config, eos_token_id=bad)
        with pytest.raises(ModelError, match="eos_token_id - got"):
            Tokenizer.from_directory(directory)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", None, r"tokenizer.json must be there - got .*config.json"),
        ("tokenizer.json", "", "must be a JSON object"),
        ("tokenizer.json", "{", "must be a JSON object"),
        ("tokenizer.json", "{}", r"tokenizer \(.*\): it must load"),
        ("tokenizer.json", '{"model": {"type": "Unheard"}}', "it must load"),
        ("tokenizer_config.json", "[]", "must be a JSON object"),
        ("chat_template.jinja", "{% for %}", r"chat template \(.*\): it must compile"),
        ("chat_template.jinja", b"\xff", "it must compile"),
        ("tokenizer_config.json", '{"chat_template": 3}', None),  # chat_template.jinja wins
    ],
)
def test_damaged_files_are_named(file, content, said, directory):
    (directory / file).unlink()
    if content is not None:
        (directory / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    if said is None:
        assert Tokenizer.from_directory(directory).chats
        return
    with pytest.raises(ModelError, match=said):
        Tokenizer.from_directory(directory)


@pytest.mark.parametrize("template", [3, [3], [{"name": "default"}], {"a": 1}])
def test_damaged_template_settings(template, directory):
    (directory / "chat_template.jinja").unlink()
    edit(directory / "tokenizer_config.json", chat_template=template)
    with pytest.raises(ModelError, match="it must compile"):
        Tokenizer.from_directory(directory)


@given(text, st.booleans())
def test_a_stream_is_the_text(ours, sample, skip):
    ids = ours.encode(sample)
    stream = ours.stream(skip_special=skip)
    pieces = [stream.push(i) for i in ids]
    assert "".join([*pieces, stream.flush()]) == ours.decode(ids, skip_special=skip)


@given(st.lists(st.integers(0, 430), max_size=30), st.booleans())
def test_a_stream_of_any_ids_is_their_text(ours, ids, skip):
    stream = ours.stream(skip_special=skip)
    pieces = [stream.push(i) for i in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join([*pieces, stream.flush()]) == ours.decode(ids, skip_special=skip)


def test_half_a_character_is_held_back(ours):
    ids = ours.encode("a\U0001f600b")
    assert len(ids) > 3
    stream = ours.stream()
    pieces = [stream.push(i) for i in ids]
    assert [piece for piece in pieces if piece] == ["a", "\U0001f600", "b"]
    cut = ours.stream()
    assert [cut.push(i) for i in ids[:2]] == ["a", ""]
    assert cut.flush() == ours.decode(ids[:2])[1:] == "\ufffd"
    assert cut.flush() == ""


def test_text_comes_as_soon_as_it_is_whole(ours):
    stream = ours.stream()
    assert [stream.push(i) for i in ours.encode("1+2")] == ["1", "+", "2"]


def test_decoders_that_treat_the_first_token_differently():
    """Llama 2's decoder strips one space at the start of a text, so pieces cannot be decoded alone."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "\u2581the", "\u2581fox", "es", "\u2581"])}
    core = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = Tokenizer(core)
    ids = [1, 2, 3, 4, 1]
    stream = TokenStream(tokenizer)
    assert [stream.push(i) for i in ids] == ["the", " fox", "es", " ", " the"]
    assert tokenizer.decode(ids) == "the foxes  the"


def test_needs_neither_torch_nor_transformers(converted):
    code = (
        "import sys; from pathlib import Path; from lockstep.models.tokenizer import Tokenizer\n"
        f"t = Tokenizer.from_directory(Path({str(converted)!r})); assert t.encode('a b')\n"
        "print([m for m in ('torch', 'transformers', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_small_models_share_the_tokenizer(tmp_path):
    build_random(tmp_path / "wide", small("qwen3", vocab_size=200))
    assert Tokenizer.from_directory(tmp_path / "wide").vocab_size == 48
