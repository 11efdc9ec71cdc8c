"""The weights a run writes are a Hugging Face directory: transformers loads them and continues a prompt alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lockstep.core import SamplingParams
from lockstep.engine import Engine
from lockstep.models.tiny import ALPHABET


def test_transformers_gives_the_same_greedy_text(run_loop, tiny_config, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    summary, _ = run_loop(tmp_path / "run", tiny_config(engine={"kv_cache_gb": 0.01, "dtype": "float32"}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(summary["weights"])
    oracle = transformers.AutoModelForCausalLM.from_pretrained(summary["weights"], dtype=torch.float32)
    engine = Engine.load(summary["weights"], dtype="float32", kv_cache_gb=0.01)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    for word in ("ab>", "dc>", "ba", ALPHABET[:20]):
        inputs = tokenizer(word, return_tensors="pt")
        whole = oracle.generate(**inputs, do_sample=False, max_new_tokens=8)
        theirs = whole[0, inputs["input_ids"].shape[1] :].tolist()
        (mine,) = engine.generate(word, params, chat=False)
        assert mine.token_ids.tolist() == theirs
