"""The paged KV cache of one layer, and writing to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.spec.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """Keys and values of one layer on one rank, ``[num_blocks, block_size, kv_heads, hd]`` each.

    Slot ``block * block_size + offset`` holds one token; row ``slot * kv_heads + h`` one head
    of it.
    """

    keys: Tensor
    values: Tensor

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store ``keys`` and ``values`` ``[n, kv_heads, hd]`` at ``slots`` i8[n]."""
        self.keys.flatten(0, 1).index_copy_(0, slots, keys)
        self.values.flatten(0, 1).index_copy_(0, slots, values)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Head rows of the cache: ``rows`` i8[m] -> keys and values ``[m, hd]``."""
        keys = self.keys.flatten(0, 2).index_select(0, rows)
        return keys, self.values.flatten(0, 2).index_select(0, rows)


def allocate_cache(
    *,
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerCache:
    """An empty cache, of zeros and not garbage: padded reads must be finite.

    Raises:
        EngineError: the device has not that much memory.
    """
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    try:
        return LayerCache(
            keys=torch.zeros(shape, dtype=dtype, device=device),
            values=torch.zeros(shape, dtype=dtype, device=device),
        )
    except RuntimeError as error:  # torch knows no narrower one on a CPU
        size_gb = 2 * math.prod(shape) * dtype.itemsize / 1e9
        raise EngineError(
            f"no room on {device} for a KV cache of {num_blocks} blocks, {size_gb:.3g} GB a layer; "
            "give it less memory, or use more ranks"
        ) from error
