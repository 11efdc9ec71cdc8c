"""Pages on the device."""

from __future__ import annotations

import pytest
import torch

from lockstep.engine.kv import KeyValues, page_bytes
from lockstep.kernels.attention import KEY_BLOCK
from lockstep.models.tiny import TINY


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_page_is_a_run_of_blocks(blocks):
    kv = KeyValues(TINY, 5, blocks * KEY_BLOCK, torch.bfloat16, "cpu")
    assert list(kv.blocks([0, 3])) == [*range(blocks), *range(3 * blocks, 4 * blocks)]
    assert kv.num_bytes == 5 * page_bytes(TINY, blocks * KEY_BLOCK, torch.bfloat16)
    assert kv.store[0][0].shape == (5 * blocks, TINY.num_kv_heads, KEY_BLOCK, TINY.head_dim)
    assert len(kv.store) == TINY.num_layers


@pytest.mark.parametrize("blocks", [1, 2])
def test_copy_takes_whole_pages_of_every_layer_and_touches_no_other(blocks):
    kv = KeyValues(TINY, 4, blocks * KEY_BLOCK, torch.float32, "cpu")
    for layer, pair in enumerate(kv.store):
        for which, tensor in enumerate(pair):
            for page in range(4):
                tensor[page * blocks : (page + 1) * blocks] = 100 * layer + 10 * which + page
    kv.copy([(0, 3), (0, 1)])
    for layer, pair in enumerate(kv.store):
        for which, tensor in enumerate(pair):
            base = 100 * layer + 10 * which
            pages = tensor.flatten(1)[:, 0].view(4, blocks)
            assert pages.tolist() == [[base + source] * blocks for source in (0, 0, 2, 0)]


def test_storage_begins_finite_and_views_share_it():
    kv = KeyValues(TINY, 2, KEY_BLOCK, torch.float32, "cpu")
    assert all(float(tensor.abs().sum()) == 0 for pair in kv.store for tensor in pair)
    kv.store[1][1][0] = 7
    kv.copy([(0, 1)])
    assert float(kv.store[1][1][1].min()) == 7
    kv.copy([])


def test_pages_are_whole_blocks():
    with pytest.raises(AssertionError):
        KeyValues(TINY, 2, KEY_BLOCK + 1, torch.float32, "cpu")
