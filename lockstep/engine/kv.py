"""The keys and values of all layers, in pages.

In: page numbers from cache.py. Out: the tensors that kernels/attention.py reads and writes.

Letters: L layers, N blocks, K kv heads, B = KEY_BLOCK tokens, D head dim. A page is `page_size / B` blocks in a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lockstep.kernels.attention import KEY_BLOCK
from lockstep.models import Architecture


class KeyValues:
    """`store` [L, 2, N, K, B, D] for `num_pages` pages. Zero at first: attention multiplies unwritten slots by 0, and
    they must be finite."""

    __slots__ = ("_blocks_per_page", "store")

    def __init__(
        self, arch: Architecture, num_pages: int, page_size: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        assert page_size % KEY_BLOCK == 0, f"pages of {page_size} tokens are not whole blocks of {KEY_BLOCK}"
        self._blocks_per_page = page_size // KEY_BLOCK
        shape = (arch.num_layers, 2, num_pages * self._blocks_per_page, arch.num_kv_heads, KEY_BLOCK, arch.head_dim)
        self.store = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        return self.store.nbytes

    def blocks(self, pages: Sequence[int]) -> Sequence[int]:
        """Block numbers of a page table, in order."""
        if self._blocks_per_page == 1:
            return pages
        first = np.asarray(pages, np.int64)[:, None] * self._blocks_per_page
        return (first + np.arange(self._blocks_per_page)).ravel().tolist()

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, (source, target); no target is a source."""
        if pairs:
            sources, targets = (np.asarray(self.blocks(pages), np.int64) for pages in zip(*pairs, strict=True))
            device = self.store.device
            source, target = (torch.from_numpy(ids).to(device) for ids in (sources, targets))
            self.store[:, :, target] = self.store[:, :, source]


def page_bytes(arch: Architecture, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    return arch.num_layers * 2 * arch.num_kv_heads * page_size * arch.head_dim * dtype.itemsize
