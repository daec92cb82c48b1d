"""Steps over a paged cache with content, for every version of a layer's operations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.kernels.attention_plan import CacheShape, StepTables
from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import HeadShape, LayerKernels
from engine.kernels.layer_torch import TorchKernels

CPU = torch.device("cpu")
# bfloat16 keeps 8 bits, and shares are rounded to it before they meet the values.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


@dataclass(frozen=True, kw_only=True)
class Heads:
    num_q: int = 4
    num_kv: int = 2
    head_dim: int = 64
    block_size: int = 16


class World:
    """A step of ``sequences`` (new tokens, cached tokens) over a cache with content."""

    def __init__(
        self,
        sequences: list[tuple[int, int]],
        heads: Heads,
        dtype: torch.dtype,
        *,
        has_norm: bool = False,
        seed: int = 0,
        device: torch.device = CPU,
    ) -> None:
        rng = np.random.default_rng(seed)
        random = torch.Generator().manual_seed(seed)
        widths = [-(-(new + cached) // heads.block_size) for new, cached in sequences]
        blocks = rng.permutation(sum(widths) + 1).astype(np.int32)
        tables = np.full((len(sequences), max(widths)), -1, dtype=np.int32)
        for seq, width in enumerate(widths):
            tables[seq, :width], blocks = blocks[:width], blocks[width:]
        self.tables = StepTables(
            query_lens=np.array([new for new, _ in sequences]),
            context_lens=np.array([cached for _, cached in sequences]),
            block_tables=tables,
        )
        self.shape = HeadShape(
            cache=CacheShape(
                block_size=heads.block_size,
                num_kv_heads=heads.num_kv,
                head_dim=heads.head_dim,
                dtype=dtype,
                device=device,
            ),
            num_q=heads.num_q,
            rms_eps=1e-5,
        )

        def draw(*shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=random, dtype=torch.float64)
            return drawn.to(device, dtype)

        cache = (sum(widths) + 1, heads.block_size, heads.num_kv, heads.head_dim)
        self.cache = LayerCache(keys=draw(*cache), values=draw(*cache))
        self.num_tokens = int(self.tables.query_lens.sum())
        width = (heads.num_q + 2 * heads.num_kv) * heads.head_dim
        self.qkv = draw(self.num_tokens + 2, width)
        self.qk_norm = draw(heads.num_q + heads.num_kv, heads.head_dim) if has_norm else None
        radians = 7 * draw(int(self.tables.totals.max()), heads.head_dim // 2).double()
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        self.rope = torch.cat((radians.cos(), radians.sin()), dim=1).to(wide)

    def reference(self) -> LayerKernels:
        return TorchKernels(shape=self.shape, rope=self.rope)

    def attend(
        self, kernels: LayerKernels, tables: StepTables | None = None, qkv: Tensor | None = None
    ) -> tuple[Tensor, LayerCache]:
        """The heads' outputs, and a copy of the cache as it is afterwards."""
        cache = LayerCache(keys=self.cache.keys.clone(), values=self.cache.values.clone())
        given = self.qkv if qkv is None else qkv
        step = kernels.step(self.tables if tables is None else tables, len(given))
        return step.attend(given.clone(), qk_norm=self.qk_norm, cache=cache), cache


def assert_near(got: Tensor, want: Tensor, case: str = "") -> None:
    """``case`` says what was computed, should they differ."""
    assert got.dtype is want.dtype, case
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(
        got, want, rtol=tolerance, atol=tolerance, msg=lambda text: f"{text}\n{case}"
    )
