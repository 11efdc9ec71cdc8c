"""Engines of others, alive: vLLM in a process and an environment of its own, an endpoint, transformers.

In: a word for an engine, `vllm:SmolLM2-135M-Instruct,dtype=float32`. Out: subjects and scorers of `parity.side`.
"""
