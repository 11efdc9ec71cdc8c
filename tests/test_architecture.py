"""The house rules, read off the source: direction of imports, budgets, and what library code may not do.

Every table of exceptions holds the present numbers and must be exact: when a number falls, the test asks for the table
to be lowered, so that it can only shrink.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lockstep"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCH = sorted((ROOT / "bench").rglob("*.py"))
PEERS = sorted((ROOT / "bench" / "peers").rglob("*.py"))  # run in environments of others, by their habits

LEVELS = (
    ("core", "sampling_params", "weight_update", "numerics", "config", "toml_tree", "errors"),  # vocabulary
    ("models", "kernels", "tasks", "checks", "trace"),  # substance
    ("engine", "rewards", "train"),  # stages
    ("gates", "parity", "audit", "monitor"),  # judges and watchers
    ("pipeline",),  # wires the stages
    ("cli", "serve", "dashboard", "adapters", "harness"),  # doors
    ("__main__", "__init__"),  # names the doors
)
LEVEL_OF = {stage: level for level, stages in enumerate(LEVELS) for stage in stages}
WATCHERS_SEE = {"core", "weight_update", "numerics", "errors", "trace", "checks"}

# Imports within one level. Each entry must be in use; a new one is a change of architecture.
SIDEWAYS = {
    ("core", "errors"): "the nouns refuse bad values",
    ("core", "sampling_params"): "a noun with a file of its own; others import it from core",
    ("sampling_params", "errors"): "the nouns refuse bad values",
    ("weight_update", "errors"): "the nouns refuse bad values",
    ("config", "errors"): "bad configuration is reported in the house form",
    ("config", "toml_tree"): "the schema is not about text",
    ("toml_tree", "errors"): "as for the schema",
    ("models", "kernels"): "the one model definition is made of the kernels",
    ("cli", "harness"): "`lockstep prove` runs the scenarios",
    ("cli", "dashboard"): "`lockstep train` shows the live view and writes the report",
    ("cli", "adapters"): "`lockstep doctor RUN` reads what other frameworks wrote",
}

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 50, 6

# "path" -> lines, "path:function" -> lines, "path:function()" -> parameters, for what is over budget today.
OVER_BUDGET: dict[str, int] = {}

UNWELCOME_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
SEEDS = re.compile(r"^(torch\.(\w+\.)?)?(manual_seed(_all)?|set_rng_state)$|^torch\.(cuda\.)?seed$|^random\.")
TORCH_DRAWS = re.compile(r"^torch\.(rand\w*|normal|multinomial|bernoulli|poisson)$")
NUMPY_GENERATORS = {"Philox", "Generator", "SeedSequence", "BitGenerator", "default_rng"}

# Host names of registries and paths of one person's machine; split, so that this file does not contain them.
FORBIDDEN = (
    "py" + "pi.org", "python" + "hosted.org", "registry.np" + "mjs", "deb.deb" + "ian.org", "download.py" + "torch.org",
    "/tmp" + "/dev", "/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "/Us" + "ers/", "find-" + "links", "--index" + "-url",
    "/o" + "pt/",
)  # fmt: skip


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def stage_of(path: Path) -> str:
    """The first part below lockstep/: a folder, or a file's stem."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and stage of each import of ours, at the top, in a function, or for types only. The version is anyone's."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "lockstep" and len(parts) > 1 and parts[1] != "__version__":
                yield node.lineno, parts[1] if parts[1] in LEVEL_OF else "__init__"


def edges() -> Iterator[tuple[str, str, str]]:
    """(from stage, to stage, place) for every import that leaves its stage."""
    for path in SOURCES:
        for line, target in imports(path):
            if target != stage_of(path):
                yield stage_of(path), target, f"{name_of(path)}:{line}"


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield prefix + child.name, child
            inner = f"{prefix}{child.name}." if hasattr(child, "name") and isinstance(child.name, str) else prefix
            yield from walk(child, inner)

    yield from walk(tree_of(path), "")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    args = function.args
    names = [a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]]
    return len(names) - (names[:1] in (["self"], ["cls"])) + bool(args.vararg) + bool(args.kwarg)


def sizes() -> Iterator[tuple[str, int, int]]:
    """(what, size, budget) of every file and function."""
    for path in [*SOURCES, *BENCH]:
        yield name_of(path), len(path.read_text(encoding="utf-8").splitlines()), MAX_FILE
        for name, node in functions(path):
            assert node.end_lineno is not None
            yield f"{name_of(path)}:{name}", node.end_lineno - node.lineno + 1, MAX_FUNCTION
            yield f"{name_of(path)}:{name}()", parameters(node), MAX_PARAMETERS


def test_every_stage_has_a_level():
    assert {stage_of(path) for path in SOURCES} <= set(LEVEL_OF)


def test_imports_point_downwards():
    wrong = [
        f"{place}: {source} (level {LEVEL_OF[source]}) imports {target} (level {LEVEL_OF[target]})"
        for source, target, place in edges()
        if LEVEL_OF[target] >= LEVEL_OF[source] and (source, target) not in SIDEWAYS
    ]
    assert not wrong, "\n".join(wrong)


def test_the_library_knows_nothing_of_its_benchmarks():
    code = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    wrong = [
        name_of(path) for path, text in code.items() if re.search(r"^\s*(import|from) bench\b", text, re.MULTILINE)
    ]
    assert not wrong, wrong


def test_sideways_imports_only_shrink():
    used = {(source, target) for source, target, _ in edges() if LEVEL_OF[target] == LEVEL_OF[source]}
    unused = set(SIDEWAYS) - used
    assert not unused, f"no longer used, take out of SIDEWAYS: {sorted(unused)}"


def test_judges_see_only_records():
    watchers = set(LEVELS[3])
    wrong = [
        f"{place}: {source} imports {target}"
        for source, target, place in edges()
        if source in watchers and target not in WATCHERS_SEE and (source, target) not in SIDEWAYS
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycles_between_stages():
    below: dict[str, set[str]] = {}
    for source, target, _ in edges():
        below.setdefault(source, set()).add(target)
    left = set(below)
    while removable := {stage for stage in left if not below[stage] & left}:
        left -= removable
    assert not left, f"these stages import one another in a cycle: {sorted(left)}"


def test_budgets():
    grown, over = [], {}
    for what, size, budget in sizes():
        if size > budget:
            over[what] = size
        if size > (allowed := OVER_BUDGET.get(what, budget)):
            grown.append(f"{what}: {size}, allowed {allowed}")
    assert not grown, "over budget, split it:\n" + "\n".join(grown)
    fallen = [f"{what}: {over.get(what, 'within budget')}, listed {size}" for what, size in OVER_BUDGET.items()]
    fallen = [line for line, what in zip(fallen, OVER_BUDGET, strict=True) if over.get(what, 0) < OVER_BUDGET[what]]
    assert not fallen, "better than listed, lower OVER_BUDGET:\n" + "\n".join(fallen)


def test_more_lines_of_test_than_of_source():
    everything = ([*SOURCES, *BENCH], TESTS)
    source, tests = (sum(len(p.read_text(encoding="utf-8").splitlines()) for p in paths) for paths in everything)
    assert tests >= source, f"{source} lines of source, {tests} of tests"


def test_names_say_what_is_inside():
    names = [
        path
        for path in [*SOURCES, *BENCH]
        for part in path.relative_to(ROOT).with_suffix("").parts
        if part in UNWELCOME_NAMES
    ]
    assert not names, [name_of(path) for path in names]


def test_everything_public_is_documented():
    missing = []
    for path in [*SOURCES, *BENCH]:
        if not ast.get_docstring(tree_of(path)):
            missing.append(f"{name_of(path)}: module")
        for node in tree_of(path).body:
            public = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_"
            if public and not ast.get_docstring(node):
                missing.append(f"{name_of(path)}:{node.lineno}: {node.name}")
    assert not missing, "no docstring:\n" + "\n".join(missing)


def broad_except(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("suppress"):
            caught = ast.Tuple(node.args)
        else:
            continue
        names = {"everything"} if caught is None else {dotted(part) for part in ast.walk(caught)}
        if names & {"everything", "Exception", "BaseException"}:
            yield node.lineno, "catches everything; foreign code runs inside errors.boundary"


def environment(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and re.search(r"(^|\.)(environb?|getenv|putenv)$", dotted(node)):
            yield node.lineno, f"{dotted(node)}: only config.py reads the environment"


def global_random(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names):
            yield node.lineno, "import random"
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
            yield node.lineno, f"from {node.module} import"
        if isinstance(node, ast.Call) and (called := dotted(node.func)):
            drawn = re.match(r"(np|numpy)\.random\.(\w+)$", called)
            unkeyed = TORCH_DRAWS.search(called) and not any(k.arg == "generator" for k in node.keywords)
            if SEEDS.search(called) or unkeyed or (drawn and drawn[2] not in NUMPY_GENERATORS):
                yield node.lineno, f"{called}: draws are keyed (numerics.request_key), generators are local"


def global_statement(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"module state: {', '.join(node.names)}"


# Rule -> the only file that may do it.
RULES = {
    broad_except: "lockstep/errors.py",
    environment: "lockstep/config.py",
    global_random: None,
    global_statement: None,
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_forbidden_in_library_code(rule):
    own = [path for path in BENCH if path not in PEERS]
    paths = [path for path in [*SOURCES, *own] if name_of(path) != RULES[rule]]
    wrong = [f"{name_of(path)}:{line}: {why}" for path in paths for line, why in rule(tree_of(path))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("rule", "code", "lines"),
    [
        (broad_except, "try: pass\nexcept: pass", [2]),
        (broad_except, "try: pass\nexcept (ValueError, Exception): pass", [2]),
        (broad_except, "contextlib.suppress(BaseException)", [1]),
        (broad_except, "try: pass\nexcept (OSError, ValueError): pass", []),
        (environment, "os.environ['A']", [1]),
        (environment, "from os import getenv\ngetenv('A')", [2]),
        (global_random, "import random", [1]),
        (
            global_random,
            "np.random.seed(1)\nnp.random.rand(2)\nnp.random.default_rng(1)\ntorch.manual_seed(0)",
            [1, 2, 4],
        ),
        (global_random, "torch.rand(2)\ntorch.randn(2, generator=g)\ng = torch.Generator()\ng.manual_seed(1)", [1]),
        (global_statement, "def f():\n    global x", [2]),
    ],
)
def test_rules_catch_what_they_are_for(rule, code, lines):
    assert [line for line, _ in rule(ast.parse(code))] == lines


def test_imports_are_found_wherever_they_are(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import lockstep.core\nimport torch\nfrom lockstep import engine, Engine, __version__\n"
        "def f():\n    from lockstep.train.batch import Batch\n"
    )
    assert list(imports(path)) == [(1, "core"), (3, "engine"), (3, "__init__"), (5, "train")]


def test_no_registry_hosts_and_no_private_paths():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    wrong = []
    for name in filter(None, listed.stdout.split("\0")):
        if not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        wrong += [f"{name}: {word}" for word in FORBIDDEN if word in text]
    assert not wrong, "\n".join(wrong)


HEAVY = ("torch", "numpy", "pyarrow", "matplotlib", "tokenizers", "safetensors", "transformers")


def loaded_after(code: str) -> list[str]:
    """Which heavy modules a fresh interpreter holds after `code`."""
    report = f"import sys\n{code}\nprint('\\nheavy:', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_import_lockstep_is_light():
    assert loaded_after("import lockstep; lockstep.__version__; dir(lockstep)") == []


def test_help_is_light():
    run = (
        "import runpy\nsys.argv = ['lockstep', '--help']\n"
        "try:\n    runpy.run_module('lockstep', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded_after(run) == []


def test_public_names_resolve():
    import lockstep

    missing = [name for name in lockstep.__all__ if not hasattr(lockstep, name)]
    assert not missing
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        lockstep.nonesuch  # noqa: B018
