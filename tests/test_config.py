"""The configuration: what it accepts, what it writes back, and what it says about everything else."""

from __future__ import annotations

import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from hypothesis import given, reject
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from lockstep.config import RunConfig, Section, cache_dir, known_keys, load, parse, to_toml
from lockstep.errors import ConfigError, InputError

HOUSE_FORM = re.compile(r"^(config|override) \(.*\): .* - got .*, expected .*\. .*\.$", re.DOTALL)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def sections(section: type[BaseModel] = RunConfig) -> list[type[BaseModel]]:
    found = [section]
    for info in section.model_fields.values():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += sections(info.annotation)
    return found


# -- the schema


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_sections_are_frozen_closed_and_documented(section: type[BaseModel]):
    assert issubclass(section, Section)
    assert section.__doc__
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section(), next(iter(section.model_fields)), None)
    with pytest.raises(ValidationError, match="Extra inputs"):
        section.model_validate({"nonesuch": 1})


def test_defaults_are_the_published_ones():
    config = parse({})
    assert config == RunConfig() == load([])
    assert (config.model, config.num_prompts_per_step, config.num_generations) == ("smollm2", 8, 8)
    assert (config.sampling.max_tokens, config.sampling.temperature, config.optim.lr) == (16, 1.0, 1e-5)
    assert (config.parity.gate, config.engine.head_dtype, config.pipeline.max_lag) == (True, "float32", 0)


def test_known_keys_are_all_of_them_in_order():
    keys = known_keys()
    assert keys[:3] == ["model", "task.name", "task.low"]
    assert len(keys) == len(set(keys))
    assert {"optim.lr", "loss.type", "loss.epsilon_low", "pipeline.max_lag", "seed", "output_dir"} <= set(keys)
    for key in keys:
        value: Any = RunConfig()
        for part in key.split("."):
            value = getattr(value, part)
        assert not isinstance(value, BaseModel)


# -- reading and writing back


printable = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)


def built(kind: type[BaseModel], **fields: Any) -> BaseModel:
    """A section; no example where tables contradict one another."""
    try:
        return kind(**fields)
    except ValidationError as failure:
        assert [error["type"] for error in failure.errors()] == ["gate"]
        reject()


def values(info: Any) -> st.SearchStrategy[Any]:
    """Values that a field accepts, read off its own constraints."""
    kind = info.annotation
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is bool:
        return st.booleans()
    if kind is str:
        return printable
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return st.builds(partial(built, kind), **{name: values(field) for name, field in kind.model_fields.items()})
    low, high, step = None, None, 1
    open_low = open_high = False
    for rule in info.metadata:
        match rule:
            case Ge():
                low = rule.ge
            case Gt():
                low, open_low = rule.gt, True
            case Le():
                high = rule.le
            case Lt():
                high, open_high = rule.lt, True
            case MultipleOf():
                step = rule.multiple_of
    if kind is int:
        assert isinstance(step, int)
        return st.integers(low and -(-low // step), high and high - open_high).map(lambda n: n * step)
    if kind is float:
        return st.floats(low, high, exclude_min=open_low, exclude_max=open_high, allow_nan=False, allow_infinity=False)
    return st.just(info.default)


configs = values(type("Field", (), {"annotation": RunConfig, "metadata": ()}))


@given(configs)
def test_what_is_written_reads_back_equal(config: RunConfig):
    text = to_toml(config)
    assert parse(tomllib.loads(text)) == config
    assert to_toml(parse(tomllib.loads(text))) == text


def test_every_key_is_written():
    tree = tomllib.loads(to_toml(RunConfig()))
    for key in known_keys():
        value: Any = tree
        for part in key.split("."):
            value = value[part]


@pytest.mark.parametrize("text", ["a\rb", "a\x00b", "a\x7fb", "a\x1bb"])
def test_control_characters_survive(text: str):
    config = RunConfig(output_dir=text)
    assert parse(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    "text", ["", '"', "\\", "a\nb", "a\tb", "é \N{SNOWMAN} \N{LINE SEPARATOR}", "'", '"""', "\\n", "#"]
)
def test_strings_survive(text: str):
    config = RunConfig(output_dir=text)
    assert parse(tomllib.loads(to_toml(config))).output_dir == text


def test_later_files_and_overrides_win(tmp_path: Path):
    first = write(tmp_path / "a.toml", 'model = "tiny"\n[optim]\nlr = 1e-3\neps = 1e-6\n')
    second = write(tmp_path / "b.toml", "[optim]\nlr = 1e-4\n[task]\nhigh = 9\n")
    config = load([first, second], ["task.high=5", "seed=3", "task.high=7"])
    assert (config.model, config.optim.lr, config.optim.eps) == ("tiny", 1e-4, 1e-6)
    assert (config.task.high, config.seed) == (7, 3)
    assert load([second, first]).optim.lr == 1e-3


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model=tiny", "model", "tiny"),
        ("model=runs/a b/weights", "model", "runs/a b/weights"),
        ('model="tiny"', "model", "tiny"),
        ('model="2"', "model", "2"),
        ("output_dir=a=b", "output_dir", "a=b"),
        ("output_dir=", "output_dir", ""),
        ("output_dir=C:\\runs", "output_dir", "C:\\runs"),
        ("max_steps=7", "max_steps", 7),
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.lr=0", "optim.lr", 0.0),
        ("optim.betas=[0.8, 0.9]", "optim.betas", (0.8, 0.9)),
        ("parity.gate=false", "parity.gate", False),
        ("loss.type=gspo", "loss.type", "gspo"),
    ],
)
def test_overrides(override: str, key: str, value: Any):
    found: Any = load([], [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


# -- what it says when something is wrong


def complaint(*overrides: str, tree: Any = None) -> str:
    with pytest.raises(ConfigError) as failure:
        load([], overrides) if tree is None else parse(tree)
    assert isinstance(failure.value, InputError)
    assert failure.value.exit_code == 2
    text = str(failure.value)
    for line in text.splitlines():
        assert HOUSE_FORM.match(line), line
    return text


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("optim.learning_rat", None),
        ("optim.lrr", "optim.lr"),
        ("optm.lr", "optim.lr"),
        ("sampling.temprature", "sampling.temperature"),
        ("max_step", "max_steps"),
        ("loss.epsilon_hi", "loss.epsilon_high"),
        ("num_generation", "num_generations"),
        ("zzzzzzzz", None),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, near: str | None):
    text = complaint(f"{key}=1")
    assert "unknown key" in text
    if near is not None:
        assert text.endswith(f" Did you mean {near}.")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("max_steps=0", r"config \(max_steps\): Input should be greater than or equal to 1 - got 0, expected"),
        ("max_steps=many", r"config \(max_steps\): Input should be a valid integer.* - got 'many', expected"),
        ("sampling.top_p=0", r"config \(sampling.top_p\): Input should be greater than 0 - got 0"),
        ("sampling.top_p=1.5", r"config \(sampling.top_p\): Input should be less than or equal to 1 - got 1.5"),
        ("sampling.temperature=nan", r"config \(sampling.temperature\): .* - got nan"),
        ("sampling.temperature=0", r"config \(sampling.temperature\): .* 0.001 - got 0, expected at least"),
        ("sampling.presence_penalty=3", r"config \(sampling.presence_penalty\): .* 2 - got 3, expected off the logits"),
        ("sampling.frequency_penalty=-3", r"config \(sampling.frequency_penalty\): .* -2 - got -3, expected off them"),
        ("sampling.repetition_penalty=0", r"config \(sampling.repetition_penalty\): .* 0 - got 0, expected over 1"),
        ("engine.page_size=20", r"config \(engine.page_size\): .*multiple of 16 - got 20, expected tokens in a page"),
        ("engine.dtype=float16", r"config \(engine.dtype\): Input should be 'bfloat16' or 'float32' - got 'float16'"),
        ("loss.type=dpo", r"config \(loss.type\): Input should be 'grpo', .* - got 'dpo'"),
        ("pipeline.max_lag=65", r"config \(pipeline.max_lag\): .* less than or equal to 64 - got 65, expected steps"),
        ("pipeline.kv=fresh", r"config \(pipeline.kv\): .*'keep', 'salt' or 'recompute' - got 'fresh'"),
        ("corrections.type=tis", r"config \(corrections.type\): Input should be 'none', 'token_tis', .* - got 'tis'"),
        ("corrections.low=1.5", r"config \(corrections.low\): .* - got 1.5, expected of masked and geometric"),
        ("corrections.high=0.5", r"config \(corrections.high\): .* - got 0.5, expected of masked and geometric"),
        ("corrections.cap=inf", r"config \(corrections.cap\): .* - got inf, expected largest"),
        ("task.held_out=1", r"config \(task.held_out\): Input should be less than 1 - got 1, expected fraction of the"),
        ("task.letters=27", r"config \(task.letters\): .* 26 - got 27, expected reverse: size of the alphabet"),
        ("num_generations=1", r"config \(num_generations\): .*greater than or equal to 2 - got 1"),
        ("optim.betas=[0.9]", r"config \(optim.betas.1\): Field required - got "),
        ("report_to=[\"wandb\"]", r"config \(report_to.0\): Input should be 'html' - got 'wandb'"),
        ("optim=3", r"config \(optim\): Input should be a valid dictionary or instance of OptimConfig - got 3"),
        ("model.name=x", r"config \(model\): Input should be a valid string - got \{'name': 'x'\}"),
        ("model=3", r"config \(model\): Input should be a valid string - got 3, expected a name from"),
    ],
)  # fmt: skip
def test_values_out_of_range(override: str, says: str):
    assert re.match(says, complaint(override))


@pytest.mark.parametrize("kind", ["token_tis", "sequence_tis", "masked", "geometric", "tv_mask"])
def test_no_correction_without_the_gate(kind: str):
    """A correction would hide what the gate is there to show."""
    text = complaint("parity.gate=false", f"corrections.type={kind}")
    assert "must not hide a broken backend: set parity.gate = true, or type = none - got {'type': " in text
    assert text.startswith("config (corrections): ") and text.count("\n") == 0
    assert load([], [f"corrections.type={kind}"]).corrections.type == kind
    assert load([], ["parity.gate=false"]).corrections.type == "none"
    assert "config (parity.gate)" in complaint("parity.gate=3", f"corrections.type={kind}")


def test_all_problems_at_once():
    lines = complaint("max_steps=0", "optim.lrr=1", "loss.type=dpo").splitlines()
    assert len(lines) == 3
    assert {re.match(r"config \((.*?)\)", line)[1] for line in lines} == {"max_steps", "optim.lrr", "loss.type"}  # type: ignore[index]


@pytest.mark.parametrize("override", ["", "=", "=3", "max_steps", "--max_steps"])
def test_overrides_without_a_key_or_a_value(override: str):
    assert complaint(override).startswith(
        f"override ({override}): an override names a key and a value - got {override}"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "the file must be readable - got "),
        (b"\xff\xfe", "the file must be readable - got 'utf-8' codec"),
        (b"max_steps 3", "the file must be TOML - got "),
        (b"[optim]\nlr = 1\n[optim]\n", "the file must be TOML - got Cannot declare"),
        (b"max_steps = 1\nmax_steps = 2", "the file must be TOML - got Cannot overwrite"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, says: str):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as failure:
        load([path])
    assert str(failure.value).startswith(f"config ({path}): {says}")
    assert HOUSE_FORM.match(str(failure.value))
    with pytest.raises(ConfigError, match="must be readable"):
        load([tmp_path])


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.sampled_from([part for key in known_keys() for part in key.split(".")]) | st.text(max_size=5)
trees = st.recursive(
    scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(keys, t, max_size=4), max_leaves=12
)  # fmt: skip


@given(st.dictionaries(keys, trees, max_size=5))
def test_fuzz_trees(tree: dict[str, Any]):
    try:
        config = parse(tree)
    except ConfigError as failure:
        assert HOUSE_FORM.match(str(failure))
        return
    assert isinstance(config, RunConfig)


@given(
    st.lists(
        st.text(max_size=12) | st.tuples(st.sampled_from(known_keys()), st.text(max_size=8)).map("=".join), max_size=4
    )
)
def test_fuzz_overrides(overrides: list[str]):
    try:
        config = load([], overrides)
    except ConfigError as failure:
        assert HOUSE_FORM.match(str(failure))
        return
    assert isinstance(config, RunConfig)


@given(
    st.text()
    | st.lists(st.tuples(st.sampled_from(known_keys()), scalars).map(lambda p: f"{p[0]} = {p[1]!r}")).map("\n".join)
)
def test_fuzz_files(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_text(text, encoding="utf-8")
    try:
        load([path])
    except ConfigError as failure:
        assert HOUSE_FORM.match(str(failure))


# -- the environment


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    assert cache_dir() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("LOCKSTEP_HOME", unset) if unset is not None else monkeypatch.delenv("LOCKSTEP_HOME")
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        assert cache_dir() == tmp_path / ".cache" / "lockstep"
