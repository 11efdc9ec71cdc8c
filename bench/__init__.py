"""Benchmarks: one command per row of the README's table, ours and the peers side by side in one run."""
