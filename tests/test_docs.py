"""What the pages say is true: programs run, commands exist, links resolve, generated pages are current, pins agree."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lockstep.cli import app
from lockstep.config import load
from lockstep.parity.catalogue import CATALOGUE, SECTIONS
from lockstep.parity.catalogue.citation import citations

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "LOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

PROGRAM = re.compile(
    r"(?:^<!-- run: (?P<needs>model|tiny) -->\n)?^```python\n(?P<code>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(lockstep [a-z][^`]*)`")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def programs() -> list:
    found = []
    for page in PAGES:
        for number, match in enumerate(PROGRAM.finditer(page.read_text(encoding="utf-8"))):
            marks = [pytest.mark.model] if match["needs"] == "model" else []
            found.append(pytest.param(match, id=f"{name_of(page)}-{number}", marks=marks))
    return found


def commands() -> list[str]:
    """Every shell line shown in a console block, and every `lockstep ...` inside prose."""
    lines = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in CONSOLE.findall(text):
            lines |= {line[2:].split("#")[0].strip() for line in block.splitlines() if line.startswith("$ ")}
        lines |= set(INLINE.findall(text))
    return sorted(lines)


def lockstep(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lockstep", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def anchors(page: Path) -> set[str]:
    """Names that headings of a Markdown page get on the usual hosts."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("program", programs())
def test_program_runs(program, tmp_path, monkeypatch, capsys):
    assert program["needs"], "say before the block what it needs: <!-- run: model --> or <!-- run: tiny -->"
    monkeypatch.chdir(tmp_path)
    exec(compile(program["code"], "example", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    if program["output"] is not None:
        assert printed == program["output"]
    assert printed, "an example shows something"


def test_readme_has_its_program():
    assert len(programs()) >= 1
    code = programs()[0].values[0]["code"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("lockstep train --config")])
def test_train_commands_are_valid(command, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "mine.toml").write_text("max_steps = 3\n")
    done = lockstep(*shlex.split(command)[1:], "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "max_steps" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "recipes"], "a dry run leaves nothing"


def spoken() -> list[str]:
    """The command words (`models pull`) that the pages name: lower-case words up to an argument or a flag."""
    words = {re.match(r"lockstep((?: [a-z]+(?=\s|$))*)", c) for c in commands() if c.startswith("lockstep ")}
    spelt = [match[1].split() for match in words if match]
    names = {" ".join(some[: 2 if some[:1] in (["models"], ["faults"]) else 1]) for some in spelt}
    return sorted(names - {""})


@pytest.mark.parametrize("name", spoken())
def test_commands_exist(name):
    done = lockstep(*name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert name.split()[-1] in done.stdout


def test_every_command_has_its_page():
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    missing = [name for name in app if not name.startswith("-") and f"| `lockstep {name}" not in page]
    assert not missing, f"docs/cli.md says nothing of {missing}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [page.read_text(encoding="utf-8") for page in PAGES] + [(ROOT / ".ci/run").read_text(encoding="utf-8")]
    named = {name for text in texts for name in re.findall(r"(?:^\$ |^|`)make ([a-z][a-z0-9-]*)", text, re.MULTILINE)}
    assert {"train", "test", "test-slow"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)} links to {link}"
        assert not anchor or anchor in anchors(path), f"{name_of(page)} links to {link}"


@pytest.mark.parametrize("index", ["docs/index.md", "docs/faults/index.md"])
def test_every_page_is_in_the_index(index):
    page = ROOT / index
    linked = {
        (page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))
    }
    assert set(page.parent.glob("*.md")) - {page} <= linked


def test_the_faults_are_in_the_index():
    assert "](faults/index.md)" in (ROOT / "docs/index.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate):
    pages = generate.pages()
    assert len(pages) > 50
    stale = [name_of(path) for path, text in pages.items() if not path.exists() or path.read_text("utf-8") != text]
    assert not stale, "run `make docs`"
    left = set((ROOT / "docs/faults").glob("*.md")) - set(pages)
    assert not left, f"of no fault, run `make docs`: {sorted(map(name_of, left))}"


def test_make_docs_rewrites_a_stale_page_and_removes_a_left_one(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "FAULTS", tmp_path / "faults")
    generate.main()
    (tmp_path / "faults/SEM01.md").write_text("old")
    (tmp_path / "faults/SEM99.md").write_text("gone")
    generate.main()
    written = {path.relative_to(tmp_path): path.read_text("utf-8") for path in tmp_path.rglob("*.md")}
    assert written == {path.relative_to(tmp_path): text for path, text in generate.pages().items()}


@pytest.mark.parametrize("code", ["SEM01", "NUM01", "OBJ06"])
def test_a_page_says_all_that_the_catalogue_says(code):
    fault, page = CATALOGUE[code], (ROOT / f"docs/faults/{code}.md").read_text(encoding="utf-8")
    texts = (fault.title, fault.what, fault.why_bad, fault.looks_like, fault.inject, fault.mend, fault.setting)
    assert all(text in page for text in texts)
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == [*SECTIONS.values(), "What to change", "Where it was met"]
    assert all(f"- [{c.text}]({c.url})" in page for c in citations(fault.source) if c.url)


def test_metrics_have_the_names_that_the_pages_say():
    table = (ROOT / "docs/parity.md").read_text(encoding="utf-8").partition("## Metrics")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(.*?)`", row)]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lockstep").rglob("*.py"))
    assert len(names) >= 5
    assert not [name for name in names if f'"{name}"' not in source]


def test_the_map_is_the_tree():
    block = re.search(
        r"^lockstep/\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert block is not None
    named = set(re.findall(r"^  (\S+)", block[1], re.MULTILINE))
    package = ROOT / "lockstep"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert named == folders | files


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_recipes_load(recipe):
    assert load([recipe]).max_steps >= 1


def test_pins_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {p.name.lower(): p.specifier for p in (Requirement(line) for line in lines if line and line[0] != "#")}
    extras = project["project"]["optional-dependencies"].values()
    for requirement in map(Requirement, [*project["project"]["dependencies"], *(r for extra in extras for r in extra)]):
        version = str(pinned[requirement.name.lower()]).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} against the pinned {version}"
    assert "torch==2.13.0" in project["project"]["dependencies"], "numerics are pinned exactly"
    assert not [r for r in project["build-system"]["requires"] if "torch" in r]
