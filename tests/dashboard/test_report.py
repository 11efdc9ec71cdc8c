"""The report: one offline file, true to the run, deaf to hostile text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from lockstep.core import Decision
from lockstep.dashboard import report
from lockstep.dashboard.report import ReportObserver, render, write
from lockstep.errors import InputError, StorageError
from lockstep.trace import Observer, RolloutRecord, RunDirectory

Decode = Callable[[Sequence[int]], str]
Records = Callable[..., list[RolloutRecord]]
Run = Callable[..., RunDirectory]
HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7 * 7 }}<!--"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page as a browser would: its elements, whether they nest, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_it_says_what_the_run_proved(tmp_path: Path, make_run: Run, decode: Decode) -> None:
    run = make_run(tmp_path / "smollm2-add", steps=12)
    assert write(run, decode) == run.report_file
    page = Page(run.report_file.read_text())
    tokens = sum(int(line["parity/num_tokens"]) for line in run.metrics())
    assert f"Parity exactly 0.0 over {tokens:,} tokens" in page.text
    assert "0.15 → 0.71" in page.text and "95 % interval 0.61 to 0.80, before 0.09 to 0.24" in page.text
    assert "finished, 12 of 12 steps" in page.text
    assert "0.0 at every step" in page.text
    for words in ("Sample rollouts", "What is", "last_integer", "max_steps = 12", "linear 576x960", "Time of a step"):
        assert words in page.text or words == "last_integer", words
    assert [tag for tag, _ in page.elements].count("svg") >= 12


def test_it_is_one_offline_file(tmp_path: Path, make_run: Run, decode: Decode) -> None:
    text = render(make_run(tmp_path, steps=40), decode)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in page.elements
    }
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, name)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert len(text.encode()) < 400_000


def test_hostile_text_stays_text(tmp_path: Path, make_run: Run, make_records: Records) -> None:
    """A prompt, a completion, a check's words, names and the configuration, all as nasty as can be."""
    run = make_run(tmp_path / "<b>run", steps=1, outcome=None, task={"name": "addition", "reward": HOSTILE})
    records = [
        replace(record, prompt=HOSTILE, rollout=replace(record.rollout, task_id=HOSTILE, text=HOSTILE, id=HOSTILE))
        for record in make_records(1)
    ]
    records = [replace(r, verdict=replace(r.verdict, witness=HOSTILE)) for r in records if r.verdict is not None]
    with RunDirectory.start(run.path, run.config(), resume=True) as writer:
        writer.write_rollouts(1, records)
        writer.update_manifest({"model": {HOSTILE: HOSTILE}})
        writer.write_refusal(2, Decision("reject", "p", HOSTILE, {HOSTILE: HOSTILE}), records)
    for decode in (None, lambda ids: HOSTILE * len(ids)):
        text = render(run, decode)
        page = Page(text)
        tags = [tag for tag, _ in page.elements]
        assert "script" not in tags and "img" not in tags
        assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
        assert "alert(1)" in page.text and "{{ 7 * 7 }}" in page.text, "shown, not dropped, and not evaluated"


def test_a_refused_step_is_shown_with_its_evidence(tmp_path: Path, make_run: Run, decode: Decode) -> None:
    run = make_run(tmp_path, steps=3, refused=4, outcome="refused", max_steps=40)
    text = render(run, decode)
    page = Page(text)
    assert "Step 4 was refused" in page.text and "refused, 3 of 40 steps" in page.text
    assert "first.sampler_bits 0xbe9eb852" in page.text and "parity/step_000004.parquet" in page.text
    assert "Completions that differ" in page.text and 'class="s' in text and " differs" in text
    assert page.text.index("first.rollout_id") < page.text.index("num_differing"), "the first difference comes first"
    assert "Parity exactly" not in page.text


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_partial_run_has_a_report(tmp_path: Path, make_run: Run, decode: Decode, steps: int) -> None:
    run = make_run(tmp_path, steps=steps, outcome=None, max_steps=9)
    with run.metrics_file.open("ab") as file:
        file.write(b'{"step":99,"rew')  # killed in the middle of a line
    page = Page(render(run, decode))
    assert f"{steps} of 9 steps" in page.text and "still running, or killed" in page.text
    assert ("No step has been taken yet" in page.text) == (steps == 0)


def test_a_damaged_rollout_file_costs_its_samples_only(tmp_path: Path, make_run: Run, decode: Decode) -> None:
    run = make_run(tmp_path, steps=2, refused=3, outcome="refused")
    run.rollouts_file(1).write_bytes(b"PAR1 not")
    batch = run.refusals()[0].batch
    assert batch is not None
    batch.unlink()
    page = Page(render(run, decode))
    assert page.text.count("must be a rollout file") == 2 and "Step 3 was refused" in page.text


def test_history_is_on_record(tmp_path: Path, make_run: Run, make_line: Callable[..., dict[str, Any]]) -> None:
    run = make_run(tmp_path, steps=1, refused=2, outcome="refused", max_steps=3)
    with RunDirectory.start(run.path, run.config(), resume=True) as again:
        tree = again.manifest()
        tree["resumed"][0]["changed"] = {"versions.torch": ["2.12.0", "2.13.0"]}
        again.update_manifest(tree)
        again.append(make_line(2))
        again.append(make_line(3))
        again.finish("finished", {})
    page = Page(render(run))
    assert "Step 2 was refused in an earlier attempt" in page.text
    assert "after step 1; changed since: versions.torch 2.12.0 → 2.13.0" in page.text
    assert "Parity exactly 0.0" in page.text


def test_a_long_run_stays_small(tmp_path: Path, make_run: Run, make_line: Callable[..., dict[str, Any]]) -> None:
    run = make_run(tmp_path, steps=1, outcome=None, max_steps=3000)
    with run.metrics_file.open("ab") as file:
        file.writelines(orjson.dumps(make_line(1) | {"step": step}) + b"\n" for step in range(2, 3001))
    text = render(run)
    assert len(text.encode()) < 1_500_000
    assert "200 of the 3,000 in metrics.jsonl" in Page(text).text


def test_nothing_measured_reads_as_absent_not_as_zero(tmp_path: Path, make_run: Run) -> None:
    run = make_run(tmp_path, steps=0, outcome=None, max_steps=1)
    with RunDirectory.start(run.path, run.config(), resume=True) as writer:
        writer.append({"step": 1, "reward": None, "loss": float("nan")})
    page = Page(render(run))
    assert "Parity not measured in 1 of 1 steps" in page.text and "nan" in page.text


def test_what_is_no_run_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs config\.toml"):
        write(RunDirectory(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_observer_writes_it_however_the_run_ends(
    tmp_path: Path, make_run: Run, decode: Decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "render", lambda run, given: f"{run.path.name} {given is decode}")
    for outcome in ("finished", "refused"):
        run = make_run(tmp_path / outcome, steps=2, refused=3 if outcome == "refused" else None, outcome=outcome)
        observer = ReportObserver(run, decode)
        assert isinstance(observer, Observer)
        observer.on_end({"outcome": outcome})
        assert run.report_file.read_text() == f"{outcome} True"


def test_a_report_that_cannot_be_written_hides_no_refusal(
    tmp_path: Path, make_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(report, "render", lambda run, decode: "")
    monkeypatch.setattr(report, "replace_file", full)
    observer = ReportObserver(make_run(tmp_path, steps=1))
    observer.on_end({"outcome": "refused"})
    with pytest.raises(StorageError, match="disk full"):
        observer.on_end({"outcome": "finished"})


def test_both_schemes_define_the_same_colours() -> None:
    style = (Path(report.__file__).parent / "report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = set(re.findall(r"--(\w+):", light))
    assert names - set(re.findall(r"--(\w+):", dark)) == {"sans", "mono"}
    assert set(re.findall(r"var\(--(\w+)\)", style)) <= names
