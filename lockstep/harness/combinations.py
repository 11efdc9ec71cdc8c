"""Does the search for restoring settings find what was planted? Random combinations of settings, real trainings.

In: how many. Out: a `Combination` each, sums of them.

An engine of 20 settings: 14 of them break parity when they are new, 6 do not. A combination has 1 to 4 of the first at
their new values and any number of the others. A trial is a laboratory in which what is not put back is new: it is
watched through two weight updates, with prompts that begin alike, and agrees if every bit does.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lockstep.core import SamplingParams
from lockstep.harness.draws import Draws
from lockstep.harness.faults import INJECTIONS
from lockstep.harness.hooks import Published
from lockstep.harness.laboratory import Laboratory
from lockstep.harness.networks import FAMILIES, Networks
from lockstep.harness.setup import Setup
from lockstep.parity.auditor import Auditor
from lockstep.parity.qualify.difference import Difference, differences
from lockstep.parity.qualify.restoration import Restoration
from lockstep.parity.qualify.restore import Workload, restore
from lockstep.parity.qualify.trial import Trial

ONSET, STEPS = 2, 3
"""The step before which settings become new (the prefix cache is warm by then), and the last that is observed."""

MOST = 4
"""Breaking settings of a combination."""

BLOCK = 5  # combinations that a worker runs at a time


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting of the laboratory's engine. `code`: the fault that its new value is; empty: it changes no bit.

    `setup` and `install` are how a setting without a fault becomes new.
    """

    name: str
    old: object
    new: object
    code: str = ""
    setup: Mapping[str, Any] = field(default_factory=dict)
    install: Callable[[Laboratory], None] | None = None


def at_once(laboratory: Laboratory) -> None:
    """All requests arrive together after the first step, whether or not the first prompt is in the cache by then."""
    laboratory.patch(laboratory, "_prefilled", lambda: True)


def backwards(laboratory: Laboratory) -> None:
    """The last prompt is asked for first."""
    laboratory.hooks.requests.append(lambda requests: requests[::-1])


def copied(laboratory: Laboratory) -> None:
    """Weights are copied on their way."""

    def copy(sent: Published) -> Published:
        return Published({name: tensor.clone() for name, tensor in sent.params.items()}, sent.version)

    laboratory.hooks.publish.append(copy)


KNOBS: tuple[Knob, ...] = (
    Knob("head_dtype", "float32", "bfloat16", "NUM01"),
    Knob("rope_dtype", "float32", "bfloat16", "NUM03"),
    Knob("norm_dtype", "float32", "bfloat16", "NUM04"),
    Knob("kv_cache_dtype", "auto", "int8", "NUM05"),
    Knob("activation_scale", "none", "batch", "PTH04"),
    Knob("attention_backend", "reference", "decode_one_short", "PTH01"),
    Knob("chunk_positions", "exact", "one_late", "PTH02"),
    Knob("logprobs_mode", "processed_logprobs", "raw_logprobs", "SEM01"),
    Knob("async_scheduling", False, True, "PTH06"),
    Knob("penalties", "applied", "ignored", "SEM05"),
    Knob("generation_config", "vllm", "auto", "SEM04"),
    Knob("cache_salt", "per_version", "none", "CAC01"),
    Knob("packed_head", "remade", "kept", "WGT04"),
    Knob("weights", "reload", "lost", "WGT01"),
    Knob("max_tokens_per_step", 64, 24, setup={"max_tokens_per_step": 24}),
    Knob("pages", 96, 64, setup={"pages": 64}),
    Knob("max_sequences", 24, 5, setup={"max_sequences": 5}),
    Knob("arrival", "after_first", "at_once", install=at_once),
    Knob("order", "submitted", "reversed", install=backwards),
    Knob("weight_transfer", "shared", "copied", install=copied),
)
"""In the order in which they are put in; names as engines have them, where engines have them."""

BREAKING = tuple(knob.name for knob in KNOBS if knob.code)
BENIGN = tuple(knob.name for knob in KNOBS if not knob.code)


@dataclass(frozen=True, slots=True)
class Combination:
    """What was planted, and what the search made of it. `seconds` of the search, wall clock."""

    seed: int
    planted: frozenset[str]
    benign: frozenset[str]
    restoration: Restoration
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether the planted settings are the answer, each seen to be needed."""
        return self.restoration.kept == self.planted and self.restoration.minimal

    @property
    def found(self) -> bool:
        """`exact`, or a set that trials prove to be a smallest one: then what was planted masks itself."""
        found = self.restoration
        if self.exact or found.status == "parity":
            return True
        return found.minimal and found.smallest != "open" and len(found.kept) <= len(self.planted)

    @property
    def wrong(self) -> str:
        """What is wrong with the answer; empty if it is found."""
        if self.found:
            return ""
        words = ", ".join(sorted(self.restoration.kept)) or "nothing"
        return f"combination {self.seed}: {', '.join(sorted(self.planted))} planted, {self.restoration.status}: {words}"


@dataclass(frozen=True, slots=True)
class Restored:
    """Sums over combinations. `exact`: those in which the answer is what was planted, `found` includes proven smaller
    ones; `trials` and `most_trials`, `seconds` of one worker; `missed`: what is wrong, a line each."""

    combinations: int = 0
    exact: int = 0
    found: int = 0
    trials: int = 0
    most_trials: int = 0
    undetermined: int = 0
    seconds: float = 0.0
    by_size: tuple[tuple[int, int], ...] = ((0, 0),) * MOST
    missed: tuple[str, ...] = ()

    def with_one(self, one: Combination) -> Restored:
        """With one more. `by_size`: found and tried for 1, 2 ... planted settings."""
        trials, size = len(one.restoration.records), len(one.planted)
        sizes = [
            (found + one.found, tried + 1) if size == number else (found, tried)
            for number, (found, tried) in enumerate(self.by_size, start=1)
        ]
        return Restored(
            self.combinations + 1,
            self.exact + one.exact,
            self.found + one.found,
            self.trials + trials,
            max(self.most_trials, trials),
            self.undetermined + one.restoration.undetermined,
            self.seconds + one.seconds,
            tuple(sizes),
            (*self.missed, *([one.wrong] if one.wrong else [])),
        )


def planted(seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """The breaking and the other settings that are new in a combination."""
    draw = Draws(seed, "combination")
    breaking = draw.distinct(draw.integer(1, MOST), len(BREAKING))
    benign = draw.distinct(draw.integer(0, len(BENIGN)), len(BENIGN))
    return frozenset(BREAKING[i] for i in breaking), frozenset(BENIGN[i] for i in benign)


def changed(names: frozenset[str]) -> tuple[Difference, ...]:
    """The differences of an engine in which `names` are new from one in which nothing is."""
    old = {knob.name: knob.old for knob in KNOBS}
    return differences(old, {knob.name: knob.new if knob.name in names else knob.old for knob in KNOBS}, ())


def trial(networks: Networks, seed: int, new: frozenset[str]) -> Trial:
    """Run a laboratory in which the settings `new` are new from step `ONSET` on."""
    knobs = [knob for knob in KNOBS if knob.name in new]
    given = {name: value for knob in knobs for name, value in knob.setup.items()}
    setup = replace(_setup(seed), **given)
    with Laboratory(networks, setup) as laboratory:
        auditor = Auditor()  # no reference: nobody has to name a cause, every bit is compared
        for step in range(1, STEPS + 1):
            finding = auditor.look(laboratory.observe())
            if finding.status != "parity" or step == STEPS:
                known = ("mean", "max", "tokens")
                figures = {name: finding.figures[name] for name in known if name in finding.figures}
                return Trial(finding.status == "parity", {**figures, "step": step})
            if step == ONSET - 1:
                for knob in knobs:
                    _install(knob, laboratory)
            laboratory.advance()
    raise AssertionError("the last step returns")


def combination(networks: Networks, seed: int) -> Combination:
    """Plant, search, compare."""
    started = time.perf_counter()
    breaking, benign = planted(seed)
    new = breaking | benign
    workload = Workload(
        lambda kept: trial(networks, seed, new - kept),
        lambda: trial(networks, seed, frozenset()),
    )
    found = restore(changed(new), workload)
    return Combination(seed, breaking, benign, found, time.perf_counter() - started)


def combinations(count: int, workers: int, seed: int = 0) -> Iterator[Restored]:
    """Run combinations `seed` to `seed + count - 1` in `workers` processes; yields running sums."""
    total = Restored()
    blocks = [range(start, min(start + BLOCK, seed + count)) for start in range(seed, seed + count, BLOCK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in as_completed([pool.submit(_block, block) for block in blocks]):
            for one in done.result():
                total = total.with_one(one)
            yield total


def _block(seeds: range) -> list[Combination]:
    with tempfile.TemporaryDirectory(prefix="lockstep-networks-") as directory:
        networks = Networks(Path(directory))
        return [combination(networks, seed) for seed in seeds]


def _setup(seed: int) -> Setup:
    """A training in which each breaking setting can be seen: a temperature, penalties, bf16, prompts that begin alike.

    An even seed is the laboratory's: there int8 is that of the keys.
    """
    draw = Draws(seed, "training of a combination")
    params = SamplingParams(
        temperature=draw.choice((0.6, 0.7, 0.8)), frequency_penalty=draw.number(0.3, 0.6), max_tokens=8, n=2,
        seed=seed, ignore_eos=True,
    )  # fmt: skip
    prefix = draw.integer(33, 44)
    family = draw.choice(FAMILIES)
    return Setup(seed=2 * seed, family=family, dtype="bfloat16", params=params, prompts=3, prefix=prefix)


def _install(knob: Knob, laboratory: Laboratory) -> None:
    if knob.code:
        INJECTIONS[knob.code].install(laboratory)
    elif knob.install is not None:
        knob.install(laboratory)
