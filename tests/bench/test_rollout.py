from __future__ import annotations

from bench.rollout import preloaded


def test_vllm_gets_the_libraries_that_it_asks_for(tmp_path):
    python, system = tmp_path / "venv" / "bin" / "python", tmp_path / "system"
    assert preloaded(python, system) == {}
    (tmp_path / "venv" / "lib").mkdir(parents=True)
    openmp = tmp_path / "venv" / "lib" / "libiomp5.so"
    openmp.touch()
    assert preloaded(python, system) == {"LD_PRELOAD": str(openmp)}
    (system / "x86_64-linux-gnu").mkdir(parents=True)
    allocator = system / "x86_64-linux-gnu" / "libtcmalloc_minimal.so.4"
    allocator.touch()
    assert preloaded(python, system) == {"LD_PRELOAD": f"{allocator}:{openmp}"}
