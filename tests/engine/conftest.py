"""Random models of each family, built once, and engines over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lockstep import models
from lockstep.config import EngineConfig
from lockstep.engine import Engine
from lockstep.models import tiny
from lockstep.models.checkpoint import digest, read_parameters
from lockstep.weight_update import WeightVersion


@dataclass(frozen=True)
class Network:
    """A model with weights in one dtype."""

    model: models.Model
    dtype: str
    params: dict[str, Tensor]

    @property
    def version(self) -> WeightVersion:
        return WeightVersion(0, digest(self.params))

    def engine(self, **settings: Any) -> Engine:
        config = EngineConfig(**{"dtype": self.dtype, "kv_cache_gb": 0.004, **settings})
        return Engine(self.model, self.params, self.version, config)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Network]:
    """`network("qwen3", "float32")`, made on first use."""
    made: dict[tuple[str, str], Network] = {}

    def get(family: Any = "llama", dtype: str = "float32") -> Network:
        if (family, dtype) not in made:
            directory = tmp_path_factory.mktemp("models") / family
            model = models.load(str(tiny.build_random(directory, tiny.small(family, vocab_size=61))))
            params = read_parameters(directory, model.arch, getattr(torch, dtype))
            made[family, dtype] = Network(model, dtype, params)
        return made[family, dtype]

    return get


@pytest.fixture
def llama(network: Callable[..., Network]) -> Network:
    return network("llama", "float32")


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    """Networks this small lose more to a second thread than they gain; a test may ask for it. Bits do not change."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)
