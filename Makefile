# Every target sets itself up: a fresh machine needs Python 3.11 and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
ARGS ?= --fresh # an earlier run is moved aside; `make train ARGS=--resume` goes on with it

.DEFAULT_GOAL := help
.PHONY: help train tiny test test-slow test-vllm check prove format docs clean \
	bench bench-rollout bench-parity bench-train bench-learn bench-decode1 bench-swap bench-growth bench-table

help: ## what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# torch first and by itself, so that the build this machine's pip is set up for is taken and later kept.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: $(READY) ## RL on SmolLM2-135M (pulled once, 93 MB), parity gated at every step
	$(BIN)/lockstep train --config recipes/smollm2-add.toml $(ARGS)

tiny: $(READY) ## the whole loop in about a minute on a model built on the spot
	$(BIN)/lockstep train --config recipes/tiny.toml $(ARGS)

check: $(READY) ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Tests are small: a process per core with one thread each is several times faster than all threads on one test. Those
# about threads set their number themselves, and the whole runs of test-slow use every core.
test: check ## check, then the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8

test-slow: $(READY) ## whole runs: killed and resumed, both recipes
	$(BIN)/python -m pytest -q -m slow

test-vllm: $(READY) ## audits of the real vLLM (its CPU build is installed beside, once) on SmolLM2
	$(BIN)/python -m pytest -q -m vllm tests/vllm

prove: $(READY) ## the long proofs: schedules, wrong bits, kills, a million tokens (about an hour on two cores)
	$(BIN)/lockstep prove schedules 10000
	$(BIN)/lockstep prove flips 10000
	$(BIN)/lockstep prove kills 50
	$(BIN)/lockstep prove kills 50 --executor processes
	$(BIN)/lockstep prove tokens 1000000

# Each peer gets an environment of its own, once. `make bench-rollout BENCH="--trial"` only sees whether all of it runs.
BENCH ?=
bench: bench-rollout bench-parity bench-train bench-decode1 bench-swap ## every row but `learn`, which takes hours

bench-rollout: $(READY) ## rollouts against vLLM's CPU backend and transformers
	$(BIN)/python -m bench rollout $(BENCH)

bench-parity: $(READY) ## the exact engine against itself with SDPA and free shapes
	$(BIN)/python -m bench parity $(BENCH)

bench-train: $(READY) ## a GRPO step against TRL
	$(BIN)/python -m bench train $(BENCH)

bench-learn: $(READY) ## seconds to a held-out accuracy against TRL, 3 seeds (hours)
	$(BIN)/python -m bench learn $(BENCH)

bench-decode1: $(READY) ## batch-1 decode against llama.cpp
	$(BIN)/python -m bench decode1 $(BENCH)

bench-swap: $(READY) ## new weights in flight, the sampler
	$(BIN)/python -m bench swap $(BENCH)

bench-growth: $(READY) ## figures: tokens/s against batch and context, a step's time against its rollouts
	$(BIN)/python -m bench growth $(BENCH)

bench-table: $(READY) ## rewrite the README's table from bench/results
	$(BIN)/python -m bench table

format: $(READY) ## rewrite in house format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(READY) ## rewrite the generated pages
	$(BIN)/python docs/generate.py

clean: ## forget the environment and every cache; runs/ is kept
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist
