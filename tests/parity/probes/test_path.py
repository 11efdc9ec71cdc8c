"""PTH: numbers that depend on the way through the engine; and silence where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lockstep.core import Path, Request, SamplingParams
from lockstep.parity.hypothesis import Hypothesis, Layout
from lockstep.parity.observation import Sample, Statement
from lockstep.parity.probe import Look
from lockstep.parity.probes import path
from lockstep.parity.side import CannotAsk

BY_SIXTEEN = Statement("engine", {"max_num_batched_tokens": 16})
LIVE = (path.decoding, path.company)


class Moody:
    """An engine whose numbers depend on what `moves` says of a batch, of a request's place in it and of the call."""

    can = frozenset({"sample", "seeded"})

    def __init__(self, moves: Callable[[Sequence[Request], int, int], float]) -> None:
        self._moves, self.calls = moves, 0

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        self.calls += 1
        ids = np.arange(4, dtype=np.int32)
        return [
            Sample(f"{r.id}/0", ids, ids, np.full(4, -1 - self._moves(requests, at, self.calls), np.float32))
            for at, r in enumerate(requests)
        ]


class TestDecoding:
    def test_what_decodes_wrongly_and_prefills_rightly(self, broken: Any):
        (found,) = path.decoding(broken("PTH01"))
        assert found.code == "PTH01"
        assert found.explained == path.SEEN_ONLY
        assert found.figures["explained"] > path.SEEN_ONLY

    def test_older_weights_prefill_wrongly_too(self, broken: Any):
        assert path.decoding(broken("WGT08")) == ()

    def test_first_tokens_that_deviate_are_not_of_the_decoder(self, broken: Any, like: Any):
        look = broken("PTH01")
        off = np.where(np.arange(len(look.samples[0].token_ids)) == 0, np.float32(-5), np.float32(0))
        samples = [replace(s, sampler=s.sampler + off) for s in look.samples]
        assert path.decoding(like(look, samples=samples)) == ()

    def test_without_paths_the_prefill_alone_decides(self, broken: Any, like: Any):
        look = broken("PTH01")
        samples = [replace(s, path=None) for s in look.samples]
        assert [e.code for e in path.decoding(like(look, samples=samples))] == ["PTH01"]

    def test_a_prefill_is_judged_without_penalties(self, broken: Any):
        """Prompt scores know none, so they must not be held against penalised ones."""
        (found,) = path.decoding(broken("PTH01", frequency_penalty=0.5))
        assert found.code == "PTH01"

    def test_it_needs_an_engine_that_scores(self, clean: Look, like: Any, without: Any):
        for look in (like(clean, subject=without(clean, "score")), like(clean, subject=None)):
            with pytest.raises(CannotAsk, match="live engine that scores"):
                path.decoding(look)


class TestOffsets:
    def test_a_chunk_that_stands_one_too_far(self, recorded: Any, like: Any, codes: Any):
        found = path.offsets(like(recorded("PTH02", max_tokens_per_step=16), engine=BY_SIXTEEN))
        assert codes(found)[0] == "PTH02"
        assert "+1 position" in max(found, key=lambda e: e.explained).why

    def test_a_resumption_that_stands_one_too_far(self, recorded: Any, like: Any, codes: Any):
        look = recorded("PTH03")
        assert any((s.path == Path.RECOMPUTE).any() for s in look.samples)
        assert codes(path.offsets(like(look, engine=BY_SIXTEEN)))[0] == "PTH03"

    @pytest.mark.parametrize("shift", path.SHIFTS)
    def test_boundaries_are_found_per_sample(self, clean: Look, like: Any, shift):
        samples = clean.samples[:4]
        start = {s.id: 5 + 3 * i for i, s in enumerate(samples)}
        moved = clean.reference.score(samples, Hypothesis(layout=Layout(shift=shift, start=start)))  # type: ignore[union-attr]
        wrong = [replace(s, sampler=series, path=None) for s, series in zip(samples, moved, strict=True)]
        (found, *_) = sorted(path.offsets(like(clean, samples=wrong)), key=lambda e: -e.explained)
        assert found.code == "PTH02"
        assert f"{shift:+d} position" in found.why
        assert found.explained > 0.99

    def test_where_nobody_says_that_a_sample_was_resumed_none_was(self, recorded: Any, like: Any, codes: Any):
        look = recorded("PTH03")
        samples = [replace(s, path=None) for s in look.samples]
        assert "PTH03" not in codes(path.offsets(like(look, samples=samples, engine=BY_SIXTEEN)))

    def test_chunks_are_looked_for_where_a_step_may_end(self, clean: Look, like: Any):
        def tried(**settings: object) -> list[set[int]]:
            sample = replace(clean.samples[0], prompt_ids=np.zeros(40, np.int32), num_cached=7)
            told = replace(clean.observation.engine, settings=settings)
            boundaries = path._boundaries(like(clean, samples=[sample], engine=told), {sample.id: 1.0})
            return [set(chosen.values()) for chosen in boundaries]

        assert tried(max_num_batched_tokens=16) == [{7}, {16}, {32}]
        assert tried() == tried(max_num_batched_tokens="?") == [{7}, *({at} for at in range(1, 40))]

    def test_a_long_prompt_is_not_searched_token_by_token(self, clean: Look, like: Any):
        sample = replace(clean.samples[0], prompt_ids=np.zeros(400, np.int32), num_cached=7)
        assert list(path._boundaries(like(clean, samples=[sample]), {sample.id: 1.0})) == [{sample.id: 7}]

    def test_who_does_not_deviate_is_left_alone(self, clean: Look, like: Any):
        look = like(clean, samples=clean.samples[:1])
        assert list(path._boundaries(look, {clean.samples[0].id: 0.0})) == [{}]


class TestLate:
    def test_penalties_that_do_not_know_the_newest_token(self, recorded: Any):
        (found,) = path.late(recorded("PTH06"))
        assert found.code == "PTH06"
        assert found.explained > 0.99

    def test_without_penalties_there_are_none_to_be_late(self, recorded: Any, like: Any):
        look = recorded("PTH06")
        samples = [replace(s, params=SamplingParams()) for s in look.samples]
        assert path.late(like(look, samples=samples)) == ()
        assert path.late(recorded("WGT08")) == ()


class TestCompany:
    @pytest.mark.parametrize("code", ["PTH04", "PTH05"])
    def test_numbers_that_depend_on_the_batch(self, broken: Any, code):
        (found,) = path.company(broken(code))
        assert (found.code, found.explained) == (code, path.SEEN_ONLY)
        assert found.figures["moved"] > 2 * found.figures["noise"]

    def test_older_weights_do_not_depend_on_it(self, broken: Any):
        assert path.company(broken("WGT08")) == ()

    @pytest.mark.parametrize(
        ("moves", "code"),
        [
            (lambda batch, at, call: 0.1 * at, "PTH05"),
            (lambda batch, at, call: 0.1 * (len(batch) == 1), "PTH04"),
            (lambda batch, at, call: 0.1 * (call % 2), None),
            (lambda batch, at, call: 0.0, None),
        ],
    )
    def test_order_company_and_noise_are_told_apart(self, recorded: Any, like: Any, moves, code):
        subject = Moody(moves)
        found = path.company(like(recorded("WGT08"), subject=subject))
        assert [e.code for e in found] == ([code] if code else [])
        assert subject.calls == 3 + path.FEW

    def test_a_pair_with_noise_may_depend_on_it_a_little(self, recorded: Any, like: Any):
        look = recorded("WGT08")
        per_token = look.distance("sampler").sum() / sum(len(s.token_ids) for s in look.samples)
        little = Moody(lambda batch, at, call: 0.5 * path.USUAL * per_token * (len(batch) == 1))
        assert [e.code for e in path.company(like(look, subject=little))] == ["PTH04"]
        assert path.company(like(look, subject=little, grain=1e-9)) == ()

    def test_the_requests_of_an_experiment_are_short_and_equally_long(self, clean: Look, like: Any):
        for requests in (clean.observation.requests, clean.observation.requests[:1]):
            short = path._short(like(clean, requests=requests))
            assert len({r.id for r in short}) == len(short) == path.FEW
            assert {len(r.prompt_ids) for r in short} == {path.SHORT}
            assert all(r.params.n == 1 and r.params.ignore_eos for r in short)

    def test_it_needs_the_requests(self, recorded: Any, like: Any):
        with pytest.raises(CannotAsk, match="requests of the step are not known"):
            path.company(like(recorded("WGT08"), requests=(), subject=Moody(lambda batch, at, call: 0.0)))

    @pytest.mark.parametrize("lost", ["sample", "seeded"])
    def test_it_needs_an_engine_that_draws_the_same_again(self, clean: Look, like: Any, without: Any, lost):
        for look in (like(clean, subject=without(clean, lost)), like(clean, subject=None)):
            with pytest.raises(CannotAsk, match="whose draws are keyed"):
                path.company(look)

    def test_texts_are_compared_up_to_the_first_other_token(self):
        ids = np.array([1, 2, 3], np.int32)
        a = Sample("a", ids, ids, np.array([-1, -1, -1], np.float32))
        b = Sample("a", ids, np.array([1, 9], np.int32), np.array([-1.5, -9], np.float32))
        assert path._apart({"a": a}, {"a": b}) == path._apart({"a": b}, {"a": a}) == 0.5
        assert path._apart({"a": a}, {"b": b}) == 0.0


class TestSilence:
    def test_on_clean_runs_nothing_is_found(self, clean: Look, clean_in_flight: Look):
        for look in (clean, clean_in_flight):
            for probe in (*LIVE, path.offsets, path.late):
                assert list(probe(look)) == [], probe.__name__

    @pytest.mark.parametrize("probe", [*LIVE, path.offsets])
    def test_without_a_reference_nobody_can_say(self, clean: Look, like: Callable[..., Look], probe):
        with pytest.raises(CannotAsk, match="reference: none was given"):
            probe(like(clean, reference=None))
